"""The command line: python -m recr1_lite COMMAND; --help lists the commands."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# rooms load torch when a name of theirs is asked for
from recr1_lite import assets, deploy, evaluate, policy, recipes, report, train
from recr1_lite.common import RecR1Error, free_folder, run_script, runs_folder
from recr1_lite.doctor import print_doctor
from recr1_lite.ledger import Ledger, main_process
from recr1_lite.profiles import get_profile

ABOUT = "An LLM learns to write queries for a search engine from nothing but the engine's own ranking metric."
EPILOG = """first steps:
  python -m recr1_lite doctor      is this machine ready?
  python -m recr1_lite demo        the whole loop, then look at runs/demo-<task>-<profile>-seed0/report.html
RECR1_PROFILE picks another profile, RECR1_CACHE another cache folder, RECR1_OFFLINE=1 forbids the network."""


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], tuple[tuple, ...]]] = {}  # function, options
# An option is (flag, help) or (flag, help, default). For the default stand also: a type, a tuple of choices (the first
# is the default), or argparse's own settings.
PROFILE = ("--profile", "smoke, cpu, t4, gpu24 or paper (default: the one that fits)")
MODEL = (PROFILE, ("--seed", "of the adapter, the rollouts and the order", 0))
TASKS = "clothing, movielens, esci, amazon_c4, amazon_reviews, or custom with --items and --requests"
MORE = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
DATA = (
    ("--task", TASKS, "clothing"),
    ("--items", "custom catalogue: CSV, JSONL or Parquet of item_id,title,text"),
    ("--requests", "custom requests: CSV, JSONL or Parquet of request,relevant"),
    ("--option", "another option of the task (category=Video_Games), as often as needed", MORE),
)
TOKENS = ("--tokens", "longest rewrite (default: the profile's)", int)
ENGINE = ("--retriever", "bm25, dense, hybrid, or the http address of a search server (default: bm25)", "bm25")
TASK = (*MODEL, *DATA, TOKENS, ENGINE)
ADDRESS = (
    ("--host", "address to listen at (default: this machine alone)", "127.0.0.1"),
    ("--port", "0: a free one (default: 8000)", 8000),
)
PRESETS = ("keep", "words", "modern", "paper")
TRAIN = (
    ("--preset", "GRPO's settings (default: the profile's, and keep where that is words)", {"choices": PRESETS}),
    ("--steps", "GRPO steps (default: the profile's)", int),
    ("--out", "folder of the run (default: the next free one under runs/)"),
    ("--resume", "go on from the last checkpoint in --out", False),
    ("--report-to", "log to a tracker too: tensorboard, wandb, trackio (default: none)", "none"),
)
RANGES: dict = {"seed": (0, 2**32 - 1), "port": (0, 65535), "memory": (0, 10**6)}  # any other number counts something
BACKENDS = ("unsloth", "transformers", "stock")
SUITES = ("offline", "ifeval", "gsm8k", "mmlu", "humaneval")


def command(*options: tuple) -> Callable:
    """Make a function a command of its name, with its docstring for help; what it returns is the exit status."""

    def register(run: Callable) -> Callable:
        COMMANDS[run.__name__.rstrip("_").replace("_", "-")] = run, options
        return run

    return register


def settings(about: str, default: Any = None) -> dict:
    """argparse's settings of an option."""
    if isinstance(default, dict):
        return {"help": about, **default}
    if isinstance(default, tuple):
        return {"help": about, "choices": default, "default": default[0]}
    if isinstance(default, type):
        return {"help": about, "type": default}
    if default is False:
        return {"help": about, "action": "store_true"}
    return {"help": about, "default": default, "type": int if isinstance(default, int) else str}


@command()
def doctor(arguments) -> int:
    """Check Python, packages, device, memory, disk, cache, and say what to do."""
    return print_doctor()


@command()
def prepare(arguments) -> None:
    """Fetch the model and the data into the cache; afterwards no network is needed."""
    for name in (*assets.ASSETS, *assets.MODELS):
        print(f"{name}: {assets.fetch(name) if name in assets.ASSETS else assets.model_folder(name)}")
    print(f"converter to GGUF: {deploy.export.converter()}")


@command(
    ("request", "what a shopper would write, in quotes"),
    *TASK,
    ("--adapter", "folder of a trained adapter (default: the one that comes with the kit)"),
    ("--k", "results of each (default: 5)", 5),
)
def try_(arguments) -> None:
    """One request: the message, the untrained model's rewrite and a trained one's, each with what the engine finds."""
    task, asked = _task(arguments), (arguments.adapter, arguments.k)
    given = arguments.request, task, _engine(arguments, task), _profile(arguments)
    print(recipes.demo.as_text(recipes.side_by_side(*given, *asked)))


@command(*TASK, *TRAIN)
def demo(arguments) -> None:
    """Run the loop: baselines, headroom, GRPO, sealed test, report."""
    profile, out = _profile(arguments), _out(arguments)
    place = out, arguments.seed, arguments.resume, _ledger()
    recipes.demo.demo(profile, *place, _task(arguments), arguments.retriever)


@command(*TASK, *TRAIN)
def train_(arguments) -> None:
    """GRPO alone: train an adapter, validate it as it goes."""
    profile, out = _profile(arguments), _out(arguments)
    task = _task(arguments).subsample(n_val=profile.n_val, n_test=profile.n_test)
    learner, ledger = policy.load_policy(profile, arguments.seed), _ledger(run=out.name)
    engine, seed = _engine(arguments, task), arguments.seed
    done = train.train_task(learner, task, engine, profile, out, seed, ledger, resume=arguments.resume)
    if main_process():
        print(f"best on val at step {done.best_step}; its adapter is in {done.adapter}")


@command(
    *TASK,
    ("--adapter", "folder of a trained adapter (default: the model as it is)"),
    ("--raw", "score the request itself, no model", False),
    ("--split", "test opens the sealed split and leaves a mark in the ledger", ("val", "train", "test")),
)
def evaluate_(arguments) -> None:
    """Score the raw request, the prompted model or an adapter."""
    profile, task = _profile(arguments), _task(arguments)
    task = task.subsample(n_val=profile.n_val, n_test=profile.n_test)  # the examples that the demo takes
    method = policy.RawRewriter()
    if not arguments.raw:
        model = policy.load_policy(profile, arguments.seed, arguments.adapter, trainable=False)
        method = policy.as_rewriter(model, task.prompt, profile, arguments.adapter or "zero-shot")
    ledger = _ledger(profile=profile.name)
    result = evaluate.evaluate(method, task, _engine(arguments, task), arguments.split, ledger, arguments.seed)
    print(result.table().to_string(index=False))


@command(
    *TASK,
    ("request", "what the shopper says"),
    ("--adapter", "folder of a trained adapter to set beside the untrained model"),
)
def inspect(arguments) -> None:
    """One request through the loop: rewrite, hits, and what an adapter changes."""
    from recr1_lite.search import search_all

    profile, task = _profile(arguments), _task(arguments)
    retriever, titles = _engine(arguments, task), task.items.set_index("item_id")["title"].to_dict()
    methods = [policy.RawRewriter()]
    for name, adapter in [("zero-shot", None)] + [("adapter", arguments.adapter)] * bool(arguments.adapter):
        model = policy.load_policy(profile, 0, adapter, trainable=False)
        methods.append(policy.as_rewriter(model, task.prompt, profile, name))
    for method in methods:
        (answer,) = method.complete([arguments.request])
        (hits,) = search_all(retriever, [answer.query], 5, titles)
        print(f"\n{method.name} ({answer.outcome})\n  sent: {answer.query}")
        for place, (item, score) in enumerate(zip(hits.ids, hits.scores), start=1):
            print(f"  {place}. {titles[item]}  ({score:.2f})")


@command(
    *MODEL,
    ("--adapter", "folder of a trained adapter (default: the untrained model alone)"),
    ("--name", "what the adapter is called in the table (default: adapter)", "adapter"),
    ("--suite", "offline: this kit's own sets; else a benchmark, from the Hub or from --data-dir", SUITES),
    ("--data-dir", "folder of the benchmarks' original files, instead of the Hub"),
    ("--limit", "items per task, drawn with --seed (default: the profile's, else all)", int),
    ("--max-tokens", "longest generated answer (default: the benchmark's own)", int),
    ("--execute-code", "humaneval: run the programs that the model wrote, in a subprocess with limits", False),
)
def capability(arguments) -> None:
    """What an adapter did to everything else: general abilities before and after."""
    profile, seed, results = _profile(arguments), arguments.seed, []
    ledger = _ledger(run=f"capability-{profile.name}-seed{seed}", profile=profile.name)
    options = {name: getattr(arguments, name) for name in ("data_dir", "execute_code")}
    options |= {"batch_size": profile.batch_size, "max_gen_toks": arguments.max_tokens}
    limit = arguments.limit or profile.n_capability
    for name, adapter in [("untrained", None)] + [(arguments.name, arguments.adapter)] * bool(arguments.adapter):
        model = policy.load_policy(profile, seed, adapter, trainable=False)
        results.append(evaluate.check(model, arguments.suite, limit, name, seed, ledger, **options))
    print(results[0].table().to_string(index=False))
    if len(results) > 1:
        print("\n" + evaluate.capability_table(results, ledger).to_string(index=False))
    print(*(f"note: {note}" for note in results[-1].notes), sep="\n")


@command(
    *MODEL,
    ("--out", "folder of the run (default: runs/compare-clothing-<profile>-seed<seed>)"),
    ("--methods", "some of them, between commas (default: all)"),
    ("--parts", "which of the three (default: all)", "methods,capability,continual"),
)
def compare(arguments) -> None:
    """Every method at one budget on the sealed test, then general abilities, then a second task; run again, it
    goes on where it was stopped."""
    from recr1_lite.tasks import load_task
    from recr1_lite.tasks.sequential import name_genres

    comparison, ledger = recipes.comparison, _ledger()
    profile, parts, seed = _profile(arguments), arguments.parts.split(","), arguments.seed
    profile = replace(profile, validate_every=min(10, profile.validate_every))  # the curves are compared
    if unknown := set(parts) - {"methods", "capability", "continual"}:
        raise RecR1Error(f"there is no part {sorted(unknown)[0]!r}; take methods, capability, continual")
    out = Path(arguments.out or runs_folder() / f"compare-clothing-{profile.name}-seed{seed}")
    methods = tuple(arguments.methods.split(",")) if arguments.methods else comparison.METHODS
    if "methods" in parts:
        comparison.compare_methods(profile, out, seed, ledger, methods=methods)
    if "continual" in parts:
        tasks = [load_task(name).subsample(n_val=profile.n_val, seed=0) for name in ("clothing", "movielens")]
        first = {trainer: out / comparison.slug(trainer) / "best" for trainer in ("GRPO", "SFT")}
        short = replace(profile, steps=max(1, profile.steps // 4))
        comparison.continual(first, tasks, name_genres(tasks[1].items), short, out, seed, ledger)
    if "capability" in parts:
        left = [name for name in methods if "continual" not in parts or name not in comparison.TRAINERS]
        comparison.check_capability(profile, out, left, seed, ledger)


@command(
    PROFILE,
    ("--model", "another model than the profile's: a published Qwen2.5 size, or a local folder"),
    ("--backend", "trainer: unsloth's, this kit's, TRL's (default: what a run would take)", {"choices": BACKENDS}),
    ("--group", "rollouts per prompt (default: the profile's)", int),
    ("--prompt-tokens", "default: the profile's limit", int),
    ("--completion-tokens", "default: the profile's limit", int),
    ("--memory", "GB of the card (default: the profile's card, else this machine's)", float),
)
def estimate(arguments) -> int:
    """Will it fit? the memory of a GRPO step, counted, and what to shrink first."""
    profile = get_profile(arguments.profile)
    tokens = {"max_prompt_tokens": arguments.prompt_tokens, "max_completion_tokens": arguments.completion_tokens}
    given = {"model": arguments.model, **tokens}
    profile = replace(profile, **{name: value for name, value in given.items() if value})
    if arguments.group:
        profile = train.memory.with_group(profile, arguments.group)
    return train.memory.print_estimate(profile, arguments.backend, arguments.memory)


@command(
    *TASK,
    ("--adapter", "folder of the trained adapter", {"required": True}),
    ("--out", "folder to make (default: export beside the adapter)"),
    ("--formats", "some of them, between commas (default: all)", "adapter,merged,gguf"),
    ("--dtype", "of the merged folder: float32, float16, bfloat16", "float16"),
    ("--gguf-type", "of the GGUF's matrices: f32, f16, bf16, q8_0", "f16"),
    ("--n", "validation requests of the check (default: 100)", 100),
    ("--run", "run in the ledger that the model card tells of (default: from the adapter's path)", ""),
    ("--method", "its method (default: from the adapter's path)", ""),
    ("--ledger", "ledger file (default: the nearest above the adapter, else the runs folder's)"),
    ("--push", "upload it to the Hugging Face Hub, as a private model", {"metavar": "OWNER/NAME"}),
    ("--public", "with --push: for everybody", False),
)
def export(arguments) -> None:
    """Leave with your model: adapter, merged 16-bit folder and GGUF, each loaded back and checked."""
    exports, profile, task, adapter = deploy.export, _profile(arguments), _task(arguments), arguments.adapter
    gathered = exports.gather(adapter, arguments.ledger, arguments.run, arguments.method)
    out, types = Path(arguments.out or Path(adapter).parent / "export"), (arguments.dtype, arguments.gguf_type)
    asked = gathered["prompt"] or task.prompt, list(task.val["request"][: arguments.n])
    card = partial(exports.card, gathered=gathered, task=task.name, data=task.about)
    told = exports.export(profile, adapter, out, *asked, arguments.formats.split(","), *types, card)
    print(*exports.lines(told), f"it is in {out}", sep="\n")
    if arguments.push:
        print(f"it is at {exports.push(out, arguments.push, private=not arguments.public)}")


@command(
    *TASK,
    ("--adapter", "folder of a trained adapter on the profile's model"),
    ("--model", "a merged folder or a .gguf file instead"),
    *ADDRESS,
    ("--k", "results per request (default: 10)", 10),
)
def serve(arguments) -> None:
    """A local address for a rewriter: a page to try, JSON of rewrite and results, OpenAI's chat."""
    task = _task(arguments)
    deploy.serve.run(arguments, _profile(arguments), task, _engine(arguments, task))


@command(*DATA, ENGINE, *ADDRESS)
def search_server(arguments) -> None:
    """One search engine for many workers: the JSON that --retriever http://... speaks, health and metrics."""
    task = _task(arguments)
    deploy.scale.run_search(arguments, task, _engine(arguments, task))


@command(PROFILE, *DATA, TOKENS, ("--out", "folder to make (default: verl)", "verl"))
def export_verl(arguments) -> None:
    """The task for the trainer verl, on more than one card: tables, tokenizer, reward file, launch.sh."""
    out = deploy.scale.export_verl(_task(arguments), _profile(arguments), arguments.out)
    print(f"it is in {out}; bash launch.sh there")


@command(
    ("--run", "name of the run (default: the last)"),
    ("--out", "file, .html or .md; without a suffix both (default: runs/report)", "runs/report"),
    ("--ledger", "ledger file (default: the runs folder's ledger.jsonl)"),
)
def report_(arguments) -> None:
    """Make the report of a run from the ledger."""
    ledger, out = Ledger(arguments.ledger), Path(arguments.out)
    outs = [out] if out.suffix else [out.with_suffix(".html"), out.with_suffix(".md")]
    paths = [report.write_report(ledger, path, arguments.run) for path in outs]
    print(report.report_markdown(ledger, arguments.run))
    print(f"look at {' and '.join(map(str, paths))}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m recr1_lite", description=ABOUT, epilog=EPILOG)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, (run, options) in COMMANDS.items():
        about = " ".join(str(run.__doc__).split())
        sub = commands.add_parser(name, help=about, description=about)
        for flag, *words in options:
            sub.add_argument(flag, **settings(*words))
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit status, as `run_script` has it."""

    def work() -> int | None:
        arguments = parser().parse_args(argv)
        for name, value in vars(arguments).items():
            least, most = RANGES.get(name, (1, 10**9))
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not least <= value <= most:
                raise RecR1Error(f"--{name.replace('_', '-')} {value} is out of range; give {least} to {most:g}")
        if (processes := os.environ.get("WORLD_SIZE", "1")) != "1" and arguments.command != "train":
            raise RecR1Error(f"{arguments.command} runs in one process, and {processes} were launched; launch train")
        return COMMANDS[arguments.command][0](arguments)

    return run_script(work)


def _profile(arguments):
    profile = get_profile(arguments.profile)
    arguments.profile = profile.name
    steps, tracker = getattr(arguments, "steps", None), getattr(arguments, "report_to", "none")
    profile = replace(profile, steps=steps or profile.steps, report_to=tracker)
    if "preset" in arguments:  # a command that trains: what it leaves should have forgotten nothing
        kept = "keep" if profile.preset == "words" else profile.preset
        profile = replace(profile, preset=arguments.preset or kept)
    return replace(profile, max_completion_tokens=getattr(arguments, "tokens", None) or profile.max_completion_tokens)


def _task(arguments):
    from recr1_lite.tasks import load_task, read_options

    files = [f"{key}={value}" for key in ("items", "requests") if (value := getattr(arguments, key))]
    options = read_options(arguments.task, [*files, *arguments.option])
    if arguments.task == "custom" and not {"items", "requests"} <= set(options):
        raise RecR1Error("--task custom needs --items and --requests; see `Your own data` in the README")
    task = load_task(arguments.task, **options)
    if adapter := getattr(arguments, "adapter", None):
        train.loop.check_adapter(adapter, get_profile(arguments.profile), task)
    return task


def _engine(arguments, task):
    from recr1_lite.search import build_retriever

    return build_retriever(arguments.retriever, task.items)


def _out(arguments) -> Path:
    """--out, else the next free folder under runs/; with --resume the last one there."""
    if arguments.out:
        return Path(arguments.out)
    first = runs_folder() / f"{arguments.command}-{arguments.task}-{arguments.profile}-seed{arguments.seed}"
    return free_folder(first, last=arguments.resume)


def _ledger(**marks) -> Ledger:
    """The runs folder's ledger; each row gets the marks and the command as it was given."""
    return Ledger().bind(command=shlex.join(["python", "-m", "recr1_lite", *sys.argv[1:]]), **marks)


if __name__ == "__main__":
    sys.exit(main())
