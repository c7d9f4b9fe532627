"""How a request is put to the model and how its completion is read: one parser for training and evaluation.

Four styles: `compact` (a line of keywords, what a small model can do), `json` (one JSON object), `think` (a thought,
then keywords in answer tags) and `paper` (a thought, then JSON in answer tags, the form of Rec-R1, arXiv 2503.24289).
The texts are this kit's own, and none asks for Boolean operators: a bag-of-words retriever would ignore them.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import Stemmer

from recr1_lite.common import RecR1Error, whole, words

STYLES = ("compact", "json", "think", "paper")
MODES = ("rewrite", "expand")
STEM = Stemmer.Stemmer("english").stemWord
BRACES = 32  # opening braces at which a JSON object is looked for: a completion made of braces stays quick
WRAPPINGS = 8  # labels, bullets and quotes around one another, for the same reason

_BULLET = re.compile(r"(?:[-+*•–—]+|\(?\d{1,2}[.)])(?:\s+|$)")
_LABEL = re.compile(
    r"(?:(?:here|are|is|the|my|some|\d+|three|five|ten|final|search|rewritten|relevant)\s+){0,6}"
    r"(?:keywords?|answer|query|rewrite|terms?)[*_\"]*(?:\s+(?:are|is))?\s*:[*_]*\s*",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’«»`*_ \t"
# how models mark a thought: tags of several names, with bars or prefixes; channels (gpt-oss, with and without its
# special tokens, Gemma 4). Every repeat is bounded, so that a completion made of half a tag stays quick.
_NAME = r"(?:\w{1,8}:)?(?:ant)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|analysis)"
_NAME += r"(?:[_ -]process)?"
_THOUGHT = re.compile(
    rf"<\|?\s?(?P<tag>/\s?|end_(?:of_)?)?(?:(?:begin|start)_(?:of_)?)?{_NAME}(?:\s[^<>]{{0,80}}?)?(?P<empty>\s?/)?\s?\|?>"
    r"|\[(?P<square>/)?think(?:ing)?\]|◁(?P<white>/)?think(?:ing)?▷"
    r"|<\|channel\|?>\s?(?:analysis|commentary|thought)\b"
    r"|(?P<channel><\|channel\|>\s?final\b[^<]{0,20}(?:<\|message\|>)?|<channel\|>|\bassistantfinal)",
    re.IGNORECASE,
)
_SHELL = re.compile(r"</?(?:answer|response|final|output|solution)>|<\|\w{1,24}\|>", re.IGNORECASE)


class Outcome(StrEnum):
    """What a completion turned out to be. Only `ok` carries a query."""

    ok = "ok"
    no_answer = "no_answer"  # think, paper: no complete <answer>...</answer>; json: no opening brace; a thought alone
    bad_json = "bad_json"  # no JSON object where the answer is
    missing_query = "missing_query"  # a JSON object, its "query" absent or neither text nor list of texts
    empty = "empty"  # the query is there and holds nothing
    truncated = "truncated"  # no_answer, bad_json or a thought without an end, because the token limit cut it off
    refused = "refused"  # of a server: its model declined, a filter stopped it, or it called a tool


class Parsed(NamedTuple):
    """Outcome of a completion, and its query on one line; "" unless ok."""

    outcome: Outcome
    query: str


def parse(completion: str, style: str, truncated: bool = False) -> Parsed:
    """Read a completion. Never raises, whatever the text is; RecR1Error for an unknown style only.

    `completion`: the whole answer; `Prompt.read` puts the prefix before what was generated where it belongs.
    `truncated`: the token limit was hit with no end token. A thought is no part of the answer (`split_thoughts`): the
    answer is the last part outside that holds one, and while a thought has no end there is none. The rules:
    - compact: the first line that is no heading, without label ("Keywords:"), bullet or quotes; a list, one keyword per
      line, counts as one line. A truncated line is still usable, so `truncated` changes nothing.
    - json: the first JSON object that has a "query"; code fences, text around it and raw newlines in it are fine.
    - think, paper: compact or json inside the last complete <answer>...</answer>. The thought is not checked, and an
      answer in tags at the very end ends it too.
    - "query" may be a list of texts, which are joined by spaces. White space becomes single spaces."""
    chosen(STYLES, style=style)
    parts, thoughts, ended = split_thoughts(completion if isinstance(completion, str) else "")
    if not ended and not truncated:  # the model itself stopped there
        last = thoughts[-1].rstrip()
        if style in ("think", "paper") and last.endswith("</answer>"):
            parts, ended = [*parts, last[max(last.rfind("<answer>"), 0) :]], True
        ended = ended or not last  # a tag with no thought behind it
    if not ended:
        return Parsed(Outcome.truncated if truncated else Outcome.no_answer, "")
    if len(parts) > 1:
        parts = [*parts[::-1], "".join(parts)]
        parts = [_SHELL.sub(" ", part) for part in parts] if style == "compact" else parts
    found = [_read(part, style) for part in parts]
    parsed = next((one for one in found if one.outcome == Outcome.ok), found[-1])
    if truncated and parsed.outcome in (Outcome.no_answer, Outcome.bad_json):
        return Parsed(Outcome.truncated, "")
    return parsed


def split_thoughts(text: str) -> tuple[list[str], list[str], bool]:
    """The parts of a text outside its thoughts, its thoughts, and whether the last of them has an end.

    A closing tag alone closes what came before it: chat templates open a thought for the model. So a tag that is only
    spoken of inside a thought, or nested there, lets nothing of it out."""
    parts: list[str] = []
    thoughts: list[str] = []
    start, thinking = 0, False
    for mark in _THOUGHT.finditer(text):
        closes, empty = any(mark[name] for name in ("tag", "square", "white", "channel")), mark["empty"]
        if thinking and (empty or not closes):
            continue
        (thoughts if closes or thinking else parts).append(text[start : mark.start()])
        start, thinking = mark.end(), not closes and not empty
    (thoughts if thinking else parts).append(text[start:])
    return parts, thoughts, not thinking


def _read(text: str, style: str) -> Parsed:
    """Read what holds no thought."""
    if style in ("think", "paper"):
        end = text.rfind("</answer>")
        start = text.rfind("<answer>", 0, max(end, 0))
        answered, text = start >= 0, text[start + len("<answer>") : end]
    else:
        answered = style == "compact" or "{" in text
    if not answered:
        return Parsed(Outcome.no_answer, "")
    query = _keywords(text) if style in ("compact", "think") else _json_query(text)
    if isinstance(query, Outcome):
        return Parsed(query, "")
    query = " ".join(whole(query).split())
    if _THOUGHT.search(query):  # spelled in escapes of JSON, or inside the answer's own tags
        return Parsed(Outcome.no_answer, "")
    return Parsed(Outcome.ok if query else Outcome.empty, query)


def chosen(known: Collection[str], **options: str) -> None:
    """Raises RecR1Error for an option whose value is none of `known`."""
    for option, value in options.items():
        if value not in known:
            raise RecR1Error(f"there is no {option}={value!r}; choose one of {', '.join(known)}")


def _keywords(text: str) -> str:
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("```")]
    kept: list[str] = []
    listing = False
    for line in lines:
        bullet = bool(_BULLET.match(line))
        if kept and not (listing and bullet):
            break
        content = _bare(line)
        if content and not (content.endswith(":") and line is not lines[-1]):  # else a heading
            kept.append(content)
            listing = bullet
    return " ".join(kept)


def _bare(line: str) -> str:
    """A line without bullets, quotes and one label, in whatever order they are wrapped."""
    labelled = False
    for _ in range(WRAPPINGS):
        before = line
        if match := _BULLET.match(line) or (None if labelled else _LABEL.match(line)):
            labelled = labelled or match.re is _LABEL
            line = line[match.end() :]
        line = line.strip(_QUOTES)
        if line == before:
            break
    return line


def _json_query(text: str) -> str | Outcome:
    """The first "query" of the JSON objects that start at one of the first braces, those inside another left out."""
    decoder, objects, at = json.JSONDecoder(strict=False), [], -1
    for _ in range(BRACES):
        if (at := text.find("{", at + 1)) < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        objects.append(value)
        at = end - 1
    query = next((one["query"] for one in objects if "query" in one), None)
    if isinstance(query, list) and all(isinstance(part, str) for part in query):
        query = " ".join(query)
    if isinstance(query, str):
        return query
    return Outcome.missing_query if objects else Outcome.bad_json


@dataclass(frozen=True)
class Prompt:
    """What the model is told.

    `instruction` is the user's turn and holds "{request}". `examples` are few-shot pairs (request, answer), the answer
    as the model should write it (see `format_answer`). `prefix` opens the assistant's turn. `mode`, `weight`,
    `distinct`: see `compose`. `thinking`: whether a chat template that has a switch for it (Qwen3) lets the model think
    first; off, because the kit's limits are a few tokens. Raises RecR1Error for an unknown style or mode, an
    instruction without {request}, an example whose answer does not parse."""

    style: str
    instruction: str
    examples: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    prefix: str = ""
    mode: str = "rewrite"
    weight: int = 1
    distinct: bool = field(default=False, repr=False)
    thinking: bool = field(default=False, repr=False)  # repr is in the settings of targets files that are older

    def __post_init__(self) -> None:
        chosen(STYLES, style=self.style)
        chosen(MODES, mode=self.mode)
        if self.weight < 1:
            raise RecR1Error(f"a prompt's weight of {self.weight} repeats nothing; take 1 or more")
        if "{request}" not in self.instruction:
            raise RecR1Error('the instruction lacks "{request}", the place where the request goes; add it')
        for number, (_, answer) in enumerate(self.examples):
            if (outcome := parse(answer, self.style).outcome) != Outcome.ok:
                example = f"few-shot example {number} is {outcome} in style {self.style}"
                raise RecR1Error(f"the answer of {example}; write it with format_answer(query, style)")

    def messages(self, request: str) -> list[dict[str, str]]:
        """The chat for one request: the system's turn, if any, two turns per example, the request; not the prefix."""
        # replace, not format: an instruction or a request may hold braces of its own
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for example, answer in self.examples:
            turns.append({"role": "user", "content": self.instruction.replace("{request}", example)})
            turns.append({"role": "assistant", "content": answer})
        return [*turns, {"role": "user", "content": self.instruction.replace("{request}", whole(request))}]

    def render(self, tokenizer, request: str) -> str:
        """The text that the model continues, through its own chat template and ending in the prefix.

        Special tokens spelled out in the request are broken up, so that it cannot leave the user's turn. The template
        has put its own start token in: tokenise with `add_special_tokens=False`. Raises RecR1Error as `chat_text`."""
        chat = self.messages(break_special_tokens(tokenizer, request))
        return chat_text(tokenizer, chat, self.thinking) + self.prefix

    def sent(self, request: str, query: str) -> str:
        """What goes to the retriever for a parsed query: `compose` with this prompt's mode, weight and distinct."""
        return compose(request, query, self.mode, self.weight, self.distinct)

    def read(self, completion: str, truncated: bool = False) -> Parsed:
        """Parse what the model generated after this prompt, in training and in evaluation alike.

        A prefix opens the JSON or the thought, so it is put back there; in `compact` it is no part of the keywords.
        What a model that may think wrote before it was cut, without any tag, is a thought that the template opened."""
        if self.thinking and truncated and not _THOUGHT.search(completion):
            return Parsed(Outcome.truncated, "")
        return parse(completion if self.style == "compact" else self.prefix + completion, self.style, truncated)


def chat_text(tokenizer, chat: list[dict], thinking: bool = False) -> str:
    """The turns through the tokenizer's own template, up to where the assistant speaks.

    thinking: for templates that have a switch; one that opens a thought all the same has it closed here, unless it is
    on. Raises RecR1Error for a tokenizer without a template and for a template that refuses the turns."""
    if not getattr(tokenizer, "chat_template", None):
        raise RecR1Error("the tokenizer has no chat template; use an instruction-tuned model or set one")
    switch = {"enable_thinking": thinking, "thinking": thinking}  # Qwen3 and most others; DeepSeek, Granite
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **switch)
    except Exception as error:  # jinja2's own classes, and what a template raises by itself
        raise RecR1Error(f"the chat template refuses this prompt (a system turn?): {error}") from error
    tags = [tag for tag in _THOUGHT.finditer(text, max(0, len(text) - 40)) if not text[tag.end() :].strip()]
    if thinking or not tags or any(tags[-1].groups()):
        return text
    return f"{text}\n{tags[-1][0][0]}/{tags[-1][0][1:]}\n\n"


_ASK = "What is the person below looking for, and what are its features? Answer with one line of keywords."
_NAME_IT = "Turn the request below into a query for a search engine that matches words. Name the thing that is wanted, "
_NAME_IT += "then words that its description is likely to hold."
_REWRITE = "Turn the request below into {} for a search engine that matches words. First think between <think> and "
_REWRITE += "</think>: which thing is wanted, and which words would describe it? Then give {} between answer tags: "
_OBJECT = ' Reply with a JSON object of the form {"query": "..."}.'
_LINE, _JSON = "<answer>...</answer>.", '<answer>{"query": "..."}</answer>.'
PROMPTS = {
    "compact": Prompt("compact", _ASK + "\n\n{request}"),
    "json": Prompt("json", _NAME_IT + _OBJECT + "\n\n{request}", prefix='{"query": "'),
    "think": Prompt(
        "think", _REWRITE.format("keywords", "one line of keywords") + _LINE + "\n\n{request}", prefix="<think>"
    ),
    "paper": Prompt(
        "paper", _REWRITE.format("a query", "the query as JSON") + _JSON + "\n\n{request}", prefix="<think>"
    ),
}
_THINK = " First think between <think> and </think>, then "
_FORMATS = {  # what `restyled` adds to the instruction, and the prefix that opens the answer
    "compact": ("", ""),
    "json": (_OBJECT, '{"query": "'),
    "think": (f"{_THINK}answer between <answer> and </answer>.", "<think>"),
    "paper": (f"{_THINK}give the answer as JSON between answer tags: {_JSON}", "<think>"),
}


def break_special_tokens(tokenizer, text: str) -> str:
    """`text` with a space put into each special token that it spells out, so that it is read as plain characters."""
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {token.content for token in added.values() if token.special}
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
    return text


def format_answer(query: str, style: str, thought: str = "The thing wanted and its features.") -> str:
    """`query` as a perfect completion of `style`: for few-shot examples, SFT targets and tests."""
    chosen(STYLES, style=style)
    answer = query if style in ("compact", "think") else json.dumps({"query": query}, ensure_ascii=False)
    return answer if style in ("compact", "json") else f"<think>{thought}</think>\n<answer>{answer}</answer>"


def restyled(prompt: Prompt, style: str) -> Prompt:
    """The same question with its answer in another style (RecR1Error: unknown), without examples, as SFT varies it."""
    if style == prompt.style:
        return prompt
    chosen(STYLES, style=style)
    form, prefix = _FORMATS[style]
    return replace(prompt, style=style, instruction=prompt.instruction + form, prefix=prefix, examples=())


@dataclass(frozen=True)
class Rewrite:
    """One answer: the query as sent to the retriever, the model's own words, how they parsed, tokens generated."""

    query: str
    completion: str
    outcome: str
    tokens: int


def compose(request: str, parsed_query: str, mode: str, weight: int = 1, distinct: bool = False) -> str:
    """What is sent to the retriever: `rewrite` the query alone, `expand` the request and the query `weight` times.

    For a bag of words, repeating a word weighs it (query2doc, arXiv 2303.07678, repeats the request). With no query
    ("", a completion that failed to parse) nothing is sent in `rewrite`, the request in `expand`. distinct: each word
    of the query once, in any of its forms ("dress dresses"), so that no policy is paid for repeating one."""
    chosen(MODES, mode=mode)
    if distinct:
        said = words(parsed_query)
        forms: dict[str, str] = {}
        for word in said:
            forms.setdefault(STEM(word), word)
        if len(forms) < len(said):
            parsed_query = " ".join(forms.values())
    return parsed_query if mode == "rewrite" else " ".join([whole(request), *[parsed_query] * weight]).strip()
