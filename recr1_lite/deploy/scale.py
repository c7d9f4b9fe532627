"""When one machine is too small: one search engine for many workers, and the task in the files of the trainer verl.

The search server answers what `JSONRetriever` sends, on what `serve` stands on, and loads no torch. For verl
(github.com/volcengine/verl; keys of 0.9.1) a task becomes two tables, a tokenizer, a reward file and a command.
"""

import ast
import json
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from recr1_lite import assets
from recr1_lite.common import RecR1Error, check_place, place_folder, slug, template
from recr1_lite.deploy.serve import CHAT_LETTERS, SAFE, Response, Route, Server, check_count, reply, until_stopped
from recr1_lite.profiles import Profile
from recr1_lite.search.base import Retriever, search_all
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt, break_special_tokens

QUERIES, DEPTH = 1024, 10_000  # queries in one call, and hits of each
PACKAGE = Path(__file__).parents[1]
PURE = {  # what the reward file has in the kit's own words
    "common.py": "RecR1Error whole",
    "tasks/prompts.py": "STYLES BRACES WRAPPINGS _BULLET _LABEL _QUOTES _NAME _THOUGHT _SHELL Outcome Parsed parse "
    "split_thoughts _read chosen _keywords _bare _json_query",
    "search/metrics.py": "_discounted",
    "train/rewards.py": "BAD_FORMAT FREE_WORDS Scored Component _ndcg _length RECIPES",
}
TEXT, TEXTS = pyarrow.string(), pyarrow.list_(pyarrow.string())
TURN = pyarrow.struct({"role": TEXT, "content": TEXT})
TRUTH = pyarrow.struct({"target": TEXTS, "gain": pyarrow.list_(pyarrow.float64())})
ABOUT = {"split": TEXT, "index": pyarrow.int64(), "example_id": TEXT, "request": TEXT, "exclude": TEXTS}
SCHEMA = pyarrow.schema(
    {
        "data_source": TEXT,
        "prompt": pyarrow.list_(TURN),
        "ability": TEXT,
        "reward_model": pyarrow.struct({"style": TEXT, "ground_truth": TRUTH}),
        "extra_info": pyarrow.struct(ABOUT),
    }
)


class SearchService(Server):
    """One engine for many workers: POST /search with what `JSONRetriever` sends. Clients take turns.

    task: whose catalogue it is; a hit that is no item of it is then an error here already, and rewrites may be sent as
    they were parsed, with their "requests" beside them: the task's prompt makes of both what is searched."""

    known, example = "POST to /search, or GET /health or /metrics", '{"queries": ["warm coat"], "k": 10}'
    queue = 1024

    def __init__(self, retriever: Retriever, task: Task | None = None):
        super().__init__()
        self.retriever, self.task = retriever, task
        self.ids: Collection[str] | None = None if task is None else frozenset(task.items["item_id"])
        self.counts = {"requests": 0, "queries": 0, "errors": 0, "seconds": 0.0}

    def search(self, asked: Mapping) -> dict:
        """{"queries": [text, ...], "k": n} -> {"results": [[{"id": ..., "score": ...}, ...], ...]}. RecR1Error."""
        queries, k, requests = self.texts(asked, "queries"), asked.get("k", 10), None
        check_count("k", k, DEPTH)
        if "requests" in asked:
            requests = self.texts(asked, "requests")
            if self.task is None or len(requests) != len(queries):
                raise RecR1Error(f"{len(requests)} requests for {len(queries)} queries, or no task; send one for each")
            queries = [self.task.prompt.sent(*pair) for pair in zip(requests, queries)]
        began = time.perf_counter()
        found = search_all(self.retriever, queries, k, self.ids)
        self.counts["seconds"] += time.perf_counter() - began
        self.counts["queries"] += len(queries)
        return {"results": [[{"id": i, "score": s} for i, s in zip(*hits, strict=True)] for hits in found]}

    def texts(self, asked: Mapping, name: str) -> list[str]:
        """A list of texts of the body. Raises RecR1Error for what is none, and for too many or too long ones."""
        given = asked.get(name)
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise RecR1Error(f'"{name}" is no list of texts; send such as {self.example}')
        if len(given) > QUERIES or max(map(len, given), default=0) > CHAT_LETTERS:
            limits = f"{QUERIES} texts of {CHAT_LETTERS} letters"
            raise RecR1Error(f'"{name}" has {len(given)} texts, or one that is too long; send at most {limits}')
        return given

    async def counted(self, request):
        """`post`, counted."""
        answer = await self.post(self.search, request)
        self.counts["requests"] += 1
        self.counts["errors"] += answer.status_code >= 400
        return answer

    async def told(self, request):
        """Who answers here, or the counts as Prometheus reads them."""
        if request.url.path == "/health":
            engine, task = type(self.retriever).__name__, getattr(self.task, "name", None)
            return reply(200, {"status": "ok", "task": task, "engine": engine})
        names = {name: f"recr1_search_{name}_total" for name in self.counts}
        lines = [f"# TYPE {names[name]} counter\n{names[name]} {count:.9g}\n" for name, count in self.counts.items()]
        return Response("".join(lines), headers=SAFE, media_type="text/plain; version=0.0.4")

    def routes(self) -> list[Route]:
        gets = [Route(path, self.told) for path in ("/health", "/metrics")]
        return [Route("/search", self.counted, methods=["POST"]), *gets]


def run_search(arguments, task: Task, retriever: Retriever) -> None:
    """The command `search-server`. arguments: host, port. Ends with Ctrl-C."""
    engine = f"{type(retriever).__name__} over the {len(task.items):,} items of {task.name}"
    ways = "--retriever {0}/search, GET {0}/health, {0}/metrics"
    service = SearchService(retriever, task)
    until_stopped(service, arguments, lambda url: f"{engine} answers at {url}/search: {ways.format(url)}")


def export_verl(task: Task, profile: Profile, out: str | Path, url: str = "http://127.0.0.1:8000/search") -> Path:
    """Write train.parquet, val.parquet, tokenizer/, reward.py and launch.sh for verl into the folder `out`.

    url: of the search server that the reward asks. The sealed test split stays where it is. Raises RecR1Error for a
    prompt above the profile's limit, a model whose tokenizer cannot be had, a folder that cannot be written."""
    from transformers import AutoTokenizer

    from recr1_lite.train.grpo import PRESETS

    check_place(out)
    source, preset = assets.model_path(profile.model), {"epsilon_high": None} | PRESETS[profile.preset]
    try:
        local = assets.offline() or Path(source).is_dir()
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError) as error:
        lost = f"the tokenizer of {profile.model!r} cannot be had ({str(error).splitlines()[0][:200]})"
        raise RecR1Error(f"{lost}; check the name and the network") from None
    task.check_prompts(tokenizer, profile.max_prompt_tokens, task.prompt)
    splits = {"train": task.train, "val": task.subsample(n_val=profile.n_val).val}
    tables = {split: rows(task, split, frame, tokenizer) for split, frame in splits.items()}
    tokenizer.chat_template = template_with_prefix(tokenizer, task.prompt, task.train["request"].iloc[0])
    rollouts = profile.prompts_per_step * profile.group_size
    loss = "seq-mean-token-mean" if preset["loss_type"] == "grpo" else "seq-mean-token-sum-norm"
    known = {"task": task.name, "profile": profile, "experiment": slug(f"{task.name} {profile.name}")}
    known |= {"preset": preset, "std": preset["scale_rewards"] == "group", "loss": loss}
    known |= {"micro": min(profile.micro_batch or rollouts, rollouts)}
    written = {"style": task.prompt.style, "prefix": task.prompt.prefix, "recipe": profile.recipe, "k": task.k_train}
    said = {name: repr(value) for name, value in (written | {"url": url}).items()}
    said |= {"task": task.name, "source": pure_source()}

    def write(work: Path) -> None:
        tokenizer.save_pretrained(work / "tokenizer")
        for split, table in tables.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, SCHEMA), work / f"{split}.parquet")
        quoted = {"model": shlex.quote(source), "url": shlex.quote(url)}
        for name, told in {"reward.py": said, "launch.sh": known | quoted}.items():
            filled = template("deploy", f"{name}.j2", keep_trailing_newline=True).render(told)
            (work / name).write_text(filled, encoding="utf-8")

    return place_folder(out, write)


def rows(task: Task, split: str, frame, tokenizer) -> list[dict]:
    """The examples of one split as verl wants them."""
    found = []
    for index, row in enumerate(frame.to_dict("records")):
        messages = task.prompt.messages(break_special_tokens(tokenizer, row["request"]))
        truth = {"target": list(row["relevant"]), "gain": [float(gain) for gain in row["relevant"].values()]}
        about = {"exclude": []} | row | {"split": split, "index": index}
        made = {"data_source": task.name, "prompt": messages, "ability": "query rewriting"}
        paid = {"reward_model": {"style": "rule", "ground_truth": truth}}
        found.append(made | paid | {"extra_info": {name: about[name] for name in ABOUT}})
    return found


def template_with_prefix(tokenizer, prompt: Prompt, request: str) -> str:
    """The chat template that ends where `Prompt.render` ends: verl has no other place for an answer that is begun.
    Raises RecR1Error for a template that does not let itself be changed so."""
    before, wanted, chat = tokenizer.chat_template, prompt.render(tokenizer, request), prompt.messages(request)
    thinks = str(prompt.thinking).lower()
    switches = f"{{%- set enable_thinking = {thinks} %}}{{%- set thinking = {thinks} %}}"
    head, how = switches + str(before).removesuffix("\n"), dict(tokenize=False, add_generation_prompt=True)
    plain = tokenizer.apply_chat_template(chat, chat_template=head, **how)
    rest = json.dumps(wanted.removeprefix(plain))
    changed = f"{head}{{%- if add_generation_prompt %}}{{{{ {rest} }}}}{{%- endif %}}"
    if tokenizer.apply_chat_template(chat, chat_template=changed, **how) != wanted:
        raise RecR1Error(f"the chat template of {tokenizer.name_or_path} takes no prefix; use another model")
    return changed


def pure_source() -> str:
    """The statements of PURE, as they stand in the kit."""
    pieces = []
    for file, names in PURE.items():
        text, wanted = (PACKAGE / file).read_text(encoding="utf-8"), set(names.split())
        for node in ast.parse(text).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            if wanted & {getattr(part, "id", getattr(part, "name", "")) for part in parts}:
                pieces.append(ast.get_source_segment(text, node) or "")
    return "\n\n\n".join(pieces)
