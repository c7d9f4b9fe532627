"""What the command line understands: commands, options, and their help."""

# MERGED: """The command line: python -m recr1_lite COMMAND; --help lists the commands."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

EPILOG = """first steps:
  python -m recr1_lite doctor      is this machine ready?
  python -m recr1_lite demo        the whole loop, then look at runs/demo-<profile>-seed0/report.html
RECR1_PROFILE picks another profile, RECR1_CACHE another cache folder, RECR1_OFFLINE=1 forbids the network."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m recr1_lite",
        epilog=EPILOG,
        description=(
            "An LLM learns to write queries for a search engine from nothing but the engine's own ranking metric."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, *groups: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if "profile" in groups:
            sub.add_argument("--profile", help="smoke, cpu, t4, gpu24 or paper (default: the one that fits)")
            sub.add_argument("--seed", type=int, default=0, help="of the adapter, the rollouts and the order")
        if "task" in groups:
            sub.add_argument(
                "--task",
                default="clothing",
                help="clothing, movielens, esci, amazon_c4, amazon_reviews, or custom with --items and --requests",
            )
            sub.add_argument("--items", help="custom catalogue: CSV, JSONL or Parquet of item_id,title,text")
            sub.add_argument("--requests", help="custom requests: CSV, JSONL or Parquet of request,relevant")
            sub.add_argument(
                "--option",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="another option of the task (category=Video_Games), as often as needed",
            )
            sub.add_argument(
                "--retriever",
                default="bm25",
                help="bm25, dense, hybrid, or the http address of a search server (default: bm25)",
            )
        if "train" in groups:
            sub.add_argument("--steps", type=int, help="GRPO steps (default: the profile's)")
            sub.add_argument("--out", help="folder of the run (default: the next free one under runs/)")
            sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
            sub.add_argument(
                "--report-to",
                default="none",
                metavar="TRACKER",
                help="log to a tracker too: tensorboard, wandb, trackio (default: none)",
            )
        return sub

    command("doctor", "check Python, packages, device, memory, disk, cache, and say what to do")
    command("prepare", "fetch the model and the data into the cache; afterwards no network is needed")
    command("demo", "run the loop: baselines, headroom, GRPO, sealed test, report", "profile", "task", "train")
    command("train", "GRPO alone: train an adapter, validate it as it goes", "profile", "task", "train")
    sub = command("evaluate", "score the raw request, the prompted model or an adapter", "profile", "task")
    sub.add_argument("--adapter", help="folder of a trained adapter (default: the model as it is)")
    sub.add_argument("--raw", action="store_true", help="score the request itself, no model")
    sub.add_argument(
        "--split",
        default="val",
        choices=("train", "val", "test"),
        help="test opens the sealed split and leaves a mark in the ledger",
    )
    sub = command(
        "inspect", "one request through the loop: rewrite, hits, and what an adapter changes", "profile", "task"
    )
    sub.add_argument("request", help="what the shopper says")
    sub.add_argument("--adapter", help="folder of a trained adapter to set beside the untrained model")
    sub = command("capability", "what an adapter did to everything else: general abilities before and after", "profile")
    sub.add_argument("--adapter", help="folder of a trained adapter (default: the untrained model alone)")
    sub.add_argument("--name", default="adapter", help="what the adapter is called in the table (default: adapter)")
    sub.add_argument(
        "--suite",
        default="offline",
        choices=("offline", "ifeval", "gsm8k", "mmlu", "humaneval"),
        help="offline: this kit's own sets; else a benchmark, from the Hub or from --data-dir",
    )
    sub.add_argument("--data-dir", help="folder of the benchmarks' original files, instead of the Hub")
    sub.add_argument("--limit", type=int, help="items a task, drawn with --seed (default: the profile's, else all)")
    sub.add_argument("--max-tokens", type=int, help="longest generated answer (default: the benchmark's own)")
    sub.add_argument(
        "--execute-code",
        action="store_true",
        help="humaneval: run the programs that the model wrote, in a subprocess with limits",
    )
    sub = command(
        "compare",
        "every method at one budget on the sealed test, then general abilities, then a second task; "
        "run again, it goes on where it was stopped",
        "profile",
    )
    sub.add_argument("--out", help="folder of the run (default: runs/compare-<profile>-seed<seed>)")
    sub.add_argument("--methods", help="some of them, between commas (default: all)")
    sub.add_argument("--parts", default="methods,capability,continual", help="which of the three (default: all)")
    sub = command("estimate", "will it fit? the memory of a GRPO step, counted, and what to shrink first")
    sub.add_argument("--profile", help="smoke, cpu, t4, gpu24 or paper (default: the one that fits)")
    sub.add_argument("--model", help="another model than the profile's: a published Qwen2.5 size, or a local folder")
    sub.add_argument(
        "--backend",
        choices=("unsloth", "transformers", "stock"),
        help="trainer: unsloth's, this kit's, TRL's (default: what a run would take)",
    )
    sub.add_argument("--group", type=int, help="rollouts of a prompt (default: the profile's)")
    sub.add_argument("--prompt-tokens", type=int, help="default: the profile's limit")
    sub.add_argument("--completion-tokens", type=int, help="default: the profile's limit")
    sub.add_argument("--memory", type=float, help="GB of the card (default: the profile's card, else this machine's)")
    sub = command(
        "export",
        "leave with your model: adapter, merged 16-bit folder and GGUF, each loaded back and checked",
        "profile",
        "task",
    )
    sub.add_argument("--adapter", required=True, help="folder of the trained adapter")
    sub.add_argument("--out", help="folder to make (default: export beside the adapter)")
    sub.add_argument("--formats", default="adapter,merged,gguf", help="some of them, between commas (default: all)")
    sub.add_argument("--dtype", default="float16", help="of the merged folder: float32, float16, bfloat16")
    sub.add_argument("--gguf-type", default="f16", help="of the GGUF's matrices: f32, f16, bf16, q8_0")
    sub.add_argument("--n", type=int, default=100, help="validation requests of the check (default: 100)")
    sub.add_argument("--run", help="run in the ledger that the model card tells of (default: from the adapter's path)")
    sub.add_argument("--method", help="its method (default: from the adapter's path)")
    sub.add_argument("--ledger", help="ledger file (default: the nearest above the adapter, else the runs folder's)")
    sub.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub, as a private model")
    sub.add_argument("--public", action="store_true", help="with --push: for everybody")
    sub = command(
        "serve",
        "a local address for a rewriter: a page to try, JSON of rewrite and results, OpenAI's chat",
        "profile",
        "task",
    )
    sub.add_argument("--adapter", help="folder of a trained adapter on the profile's model")
    sub.add_argument("--model", help="a merged folder or a .gguf file instead")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    sub.add_argument("--k", type=int, default=10, help="results a request (default: 10)")
    sub = command("report", "make the report of a run from the ledger")
    sub.add_argument("--run", help="name of the run (default: the last)")
    sub.add_argument(
        "--out", default="runs/report", help="file to write, .html or .md; without a suffix both (default: runs/report)"
    )
    sub.add_argument("--ledger", help="ledger file (default: the runs folder's ledger.jsonl)")
    return top


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line when it is said
    from recr1_lite.common import RecR1Error  # after --help, which should be quick

    try:
        return COMMANDS[arguments.command](arguments) or 0
    except RecR1Error as error:
        print(f"recr1_lite: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\nrecr1_lite: stopped; what was written stays", file=sys.stderr)
        return 130


def doctor(arguments) -> int:
    from recr1_lite.doctor import print_doctor

    return print_doctor()


def prepare(arguments) -> None:
    from recr1_lite import assets

    for name in assets.ASSETS:
        print(f"{name}: {assets.fetch(name)}")
    for name in assets.MODELS:
        print(f"{name}: {assets.model_folder(name)}")


def demo(arguments) -> None:
    from recr1_lite.ledger import Ledger
    from recr1_lite.recipes.demo import demo as run
    from recr1_lite.tasks.clothing import FEW_SHOT

    profile, out = _profile(arguments), _out(arguments)
    run(
        profile,
        out,
        arguments.seed,
        arguments.resume,
        Ledger().bind(command=_command()),
        _task(arguments),
        FEW_SHOT if arguments.task == "clothing" else None,
        retriever=arguments.retriever,
    )


def train(arguments) -> None:
    from recr1_lite.ledger import Ledger
    from recr1_lite.policy.models import load_policy
    from recr1_lite.train.grpo import train_task

    profile, out = _profile(arguments), _out(arguments)
    task = _task(arguments).subsample(n_val=profile.n_val)
    done = train_task(
        load_policy(profile, arguments.seed),
        task,
        _engine(arguments, task),
        profile,
        out,
        arguments.seed,
        Ledger().bind(run=out.name, command=_command()),
        resume=arguments.resume,
    )
    print(f"best on val at step {done.best_step}; its adapter is in {done.adapter}")


def evaluate(arguments) -> None:
    from recr1_lite.evaluate import evaluation
    from recr1_lite.ledger import Ledger
    from recr1_lite.policy.models import load_policy
    from recr1_lite.policy.rewriters import RawRewriter, as_rewriter

    profile, task = _profile(arguments), _task(arguments)
    task = task.subsample(n_val=profile.n_val, n_test=profile.n_test)  # the examples that the demo takes
    method = RawRewriter()
    if not arguments.raw:
        policy = load_policy(profile, arguments.seed, arguments.adapter, trainable=False)
        method = as_rewriter(policy, task.prompt, profile, arguments.adapter or "zero-shot")
    ledger = Ledger().bind(profile=profile.name, command=_command())
    result = evaluation.evaluate(method, task, _engine(arguments, task), arguments.split, ledger, arguments.seed)
    print(result.table().to_string(index=False))


def inspect(arguments) -> None:
    from recr1_lite.policy.models import load_policy
    from recr1_lite.policy.rewriters import RawRewriter, as_rewriter

    profile, task = _profile(arguments), _task(arguments)
    retriever, titles = _engine(arguments, task), task.items.set_index("item_id")["title"]
    methods = [RawRewriter(), as_rewriter(load_policy(profile, trainable=False), task.prompt, profile, "zero-shot")]
    if arguments.adapter:
        policy = load_policy(profile, adapter=arguments.adapter, trainable=False)
        methods.append(as_rewriter(policy, task.prompt, profile, "adapter"))
    for method in methods:
        (answer,) = method.complete([arguments.request])
        (hits,) = retriever.search([answer.query], 5)
        print(f"\n{method.name} ({answer.outcome})\n  sent: {answer.query}")
        for place, (item, score) in enumerate(zip(hits.ids, hits.scores), start=1):
            print(f"  {place}. {titles[item]}  ({score:.2f})")


def capability(arguments) -> None:
    from recr1_lite.evaluate.capability import capability_table, check
    from recr1_lite.ledger import Ledger
    from recr1_lite.policy.models import load_policy

    profile, results = _profile(arguments), []
    run = f"capability-{profile.name}-seed{arguments.seed}"
    ledger = Ledger().bind(run=run, profile=profile.name, command=_command())
    for name, adapter in [("untrained", None)] + [(arguments.name, arguments.adapter)] * bool(arguments.adapter):
        results.append(
            check(
                load_policy(profile, arguments.seed, adapter, trainable=False),
                arguments.suite,
                arguments.limit or profile.n_capability,
                name,
                arguments.seed,
                ledger,
                batch_size=profile.batch_size,
                data_dir=arguments.data_dir,
                max_gen_toks=arguments.max_tokens,
                execute_code=arguments.execute_code,
            )
        )
    print(results[0].table().to_string(index=False))
    if len(results) > 1:
        print("\n" + capability_table(results, ledger).to_string(index=False))
    print(*(f"note: {note}" for note in results[-1].notes), sep="\n")


def compare(arguments) -> None:
    from recr1_lite.common import RecR1Error, runs_folder
    from recr1_lite.ledger import Ledger
    from recr1_lite.recipes import comparison
    from recr1_lite.recipes.comparison import continual
    from recr1_lite.tasks import load_task
    from recr1_lite.tasks.movielens import name_genres

    profile, parts = _profile(arguments), arguments.parts.split(",")
    profile = replace(profile, validate_every=min(10, profile.validate_every))  # the curves are compared
    if unknown := set(parts) - {"methods", "capability", "continual"}:
        raise RecR1Error(f"there is no part {sorted(unknown)[0]!r}; take methods, capability, continual")
    out = Path(arguments.out or runs_folder() / f"compare-{profile.name}-seed{arguments.seed}")
    methods = tuple(arguments.methods.split(",")) if arguments.methods else comparison.METHODS
    seed, ledger = arguments.seed, Ledger().bind(command=_command())
    if "methods" in parts:
        comparison.compare_methods(profile, out, seed, ledger, methods=methods)
    if "continual" in parts:
        tasks = [load_task(name).subsample(n_val=profile.n_val, seed=0) for name in ("clothing", "movielens")]
        first = {trainer: out / comparison.slug(trainer) / "best" for trainer in ("GRPO", "SFT")}
        short = replace(profile, steps=max(1, profile.steps // 4))
        continual(first, tasks, name_genres(tasks[1].items), short, out, seed, ledger)
    if "capability" in parts:
        seen = ("GRPO", "SFT") if "continual" in parts else ()
        comparison.check_capability(profile, out, [name for name in methods if name not in seen], seed, ledger)


def estimate(arguments) -> int:
    from recr1_lite.profiles import get_profile
    from recr1_lite.train.memory import print_estimate, with_group

    profile = get_profile(arguments.profile)
    names = {"model": "model", "max_prompt_tokens": "prompt_tokens", "max_completion_tokens": "completion_tokens"}
    given = {name: getattr(arguments, option) for name, option in names.items()}
    profile = replace(profile, **{name: value for name, value in given.items() if value is not None})
    if arguments.group is not None:
        profile = with_group(profile, arguments.group)
    return print_estimate(profile, arguments.backend, arguments.memory)


def export(arguments) -> None:
    from recr1_lite.deploy.export import run

    run(arguments, _profile(arguments), _task(arguments))


def serve(arguments) -> None:
    from recr1_lite.deploy.serve import run

    task = _task(arguments)
    run(arguments, _profile(arguments), task, _engine(arguments, task))


def report(arguments) -> None:
    from recr1_lite.ledger import Ledger
    from recr1_lite.report.page import report_markdown, write_report

    ledger, out = Ledger(arguments.ledger), Path(arguments.out)
    paths = [
        write_report(ledger, path, arguments.run)
        for path in ([out] if out.suffix else [out.with_suffix(".html"), out.with_suffix(".md")])
    ]
    print(report_markdown(ledger, arguments.run))
    print(f"look at {' and '.join(map(str, paths))}")


def _profile(arguments):
    from recr1_lite.common import RecR1Error
    from recr1_lite.profiles import get_profile

    profile = get_profile(arguments.profile)
    arguments.profile = profile.name
    steps = getattr(arguments, "steps", None)
    if steps is not None and steps < 1:
        raise RecR1Error(f"--steps {steps} is no training; give 1 or more")
    return replace(profile, steps=steps or profile.steps, report_to=getattr(arguments, "report_to", "none"))


def _task(arguments):
    from recr1_lite.common import RecR1Error
    from recr1_lite.tasks import load_task

    options = {key: value for key in ("items", "requests") if (value := getattr(arguments, key))}
    for option in arguments.option:
        name, sign, value = option.partition("=")
        if not name or not sign:
            raise RecR1Error(f"--option {option} is no NAME=VALUE; write such as --option category=Video_Games")
        options[name] = int(value) if value.isdigit() else value
    if arguments.task == "custom" and not {"items", "requests"} <= set(options):
        raise RecR1Error("--task custom needs --items and --requests; see `Your own data` in the README")
    return load_task(arguments.task, **options)


def _engine(arguments, task):
    from recr1_lite.search import build_retriever

    return build_retriever(arguments.retriever, task.items)


def _out(arguments) -> Path:
    """--out, else the next free folder under runs/; with --resume the last one there."""
    from recr1_lite.common import free_folder, runs_folder

    if arguments.out:
        return Path(arguments.out)
    first = runs_folder() / f"{arguments.command}-{arguments.profile}-seed{arguments.seed}"
    free = free_folder(first)
    if not arguments.resume or free == first:
        return free
    number = int(free.name.removeprefix(first.name)[1:]) - 1
    return first.with_name(f"{first.name}-{number}") if number > 1 else first


def _command() -> str:
    return shlex.join(["python", "-m", "recr1_lite", *sys.argv[1:]])


COMMANDS = {
    "doctor": doctor,
    "prepare": prepare,
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "inspect": inspect,
    "capability": capability,
    "compare": compare,
    "estimate": estimate,
    "export": export,
    "serve": serve,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(main())
