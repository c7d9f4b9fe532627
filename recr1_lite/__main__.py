"""The command line: python -m recr1_lite COMMAND; --help lists the commands."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from recr1_lite.arguments import parser


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line when it is said
    from recr1_lite.errors import RecR1Error  # after --help, which should be quick

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
    from recr1_lite.demo import demo as run
    from recr1_lite.tasks.clothing import FEW_SHOT

    profile, out = _profile(arguments), _out(arguments)
    run(profile, out, arguments.seed, arguments.resume, task=_task(arguments),
        few_shot=FEW_SHOT if arguments.task == "clothing" else None, command=_command(),
        retriever=arguments.retriever)


def train(arguments) -> None:
    from recr1_lite import demo as loop
    from recr1_lite.models import load_policy

    profile, out = _profile(arguments), _out(arguments)
    task = _task(arguments).subsample(n_val=profile.n_val)
    done = loop.train(load_policy(profile, arguments.seed), task, _engine(arguments, task), profile, out,
                      arguments.seed, arguments.resume, run=out.name, command=_command())
    print(f"best on val at step {done.best_step}; its adapter is in {done.adapter}")


def evaluate(arguments) -> None:
    from recr1_lite import evaluation
    from recr1_lite.demo import rewriter
    from recr1_lite.ledger import Ledger
    from recr1_lite.models import load_policy
    from recr1_lite.rewriters import RawRewriter

    profile, task = _profile(arguments), _task(arguments)
    task = task.subsample(n_val=profile.n_val, n_test=profile.n_test)  # the examples that the demo takes
    method = RawRewriter()
    if not arguments.raw:
        policy = load_policy(profile, arguments.seed, arguments.adapter, trainable=False)
        method = rewriter(policy, task.prompt, profile, arguments.adapter or "zero-shot")
    result = evaluation.evaluate(method, task, _engine(arguments, task), arguments.split, Ledger(),
                                 profile.name, arguments.seed)
    print(result.table().to_string(index=False))


def inspect(arguments) -> None:
    from recr1_lite.demo import rewriter
    from recr1_lite.models import load_policy
    from recr1_lite.rewriters import RawRewriter

    profile, task = _profile(arguments), _task(arguments)
    retriever, titles = _engine(arguments, task), task.items.set_index("item_id")["title"]
    methods = [RawRewriter(), rewriter(load_policy(profile, trainable=False), task.prompt, profile, "zero-shot")]
    if arguments.adapter:
        policy = load_policy(profile, adapter=arguments.adapter, trainable=False)
        methods.append(rewriter(policy, task.prompt, profile, "adapter"))
    for method in methods:
        (answer,) = method.complete([arguments.request])
        (hits,) = retriever.search([answer.query], 5)
        print(f"\n{method.name} ({answer.outcome})\n  sent: {answer.query}")
        for place, (item, score) in enumerate(zip(hits.ids, hits.scores), start=1):
            print(f"  {place}. {titles[item]}  ({score:.2f})")


def capability(arguments) -> None:
    from recr1_lite.capability import capability_table, check
    from recr1_lite.ledger import Ledger
    from recr1_lite.models import load_policy

    profile, ledger, results = _profile(arguments), Ledger(), []
    run = f"capability-{profile.name}-seed{arguments.seed}"
    for name, adapter in [("untrained", None)] + [(arguments.name, arguments.adapter)] * bool(arguments.adapter):
        results.append(check(
            load_policy(profile, arguments.seed, adapter, trainable=False), arguments.suite,
            arguments.limit or profile.n_capability, name, arguments.seed, ledger, run, profile.name,
            arguments.data_dir, batch_size=profile.batch_size, max_gen_toks=arguments.max_tokens,
            execute_code=arguments.execute_code))
    print(results[0].table().to_string(index=False))
    if len(results) > 1:
        print("\n" + capability_table(results, ledger, run).to_string(index=False))
    print(*(f"note: {note}" for note in results[-1].notes), sep="\n")


def compare(arguments) -> None:
    from recr1_lite import comparison
    from recr1_lite.continual import continual
    from recr1_lite.errors import RecR1Error
    from recr1_lite.files import runs_folder
    from recr1_lite.tasks import load_task
    from recr1_lite.tasks.movielens import name_genres

    profile, parts = _profile(arguments), arguments.parts.split(",")
    profile = profile.but(validate_every=min(10, profile.validate_every))  # the curves are compared
    if unknown := set(parts) - {"methods", "capability", "continual"}:
        raise RecR1Error(f"there is no part {sorted(unknown)[0]!r}; take methods, capability, continual")
    out = Path(arguments.out or runs_folder() / f"compare-{profile.name}-seed{arguments.seed}")
    methods = tuple(arguments.methods.split(",")) if arguments.methods else comparison.METHODS
    if "methods" in parts:
        comparison.compare_methods(profile, out, arguments.seed, command=_command(), methods=methods)
    if "continual" in parts:
        tasks = [load_task(name).subsample(n_val=profile.n_val, seed=0) for name in ("clothing", "movielens")]
        first = {trainer: out / comparison.slug(trainer) / "best" for trainer in ("GRPO", "SFT")}
        continual(first, tasks, name_genres(tasks[1].items), profile.but(steps=max(1, profile.steps // 4)), out,
                  arguments.seed, command=_command())
    if "capability" in parts:
        seen = ("GRPO", "SFT") if "continual" in parts else ()
        comparison.check_capability(profile, out, [name for name in methods if name not in seen], arguments.seed)


def estimate(arguments) -> int:
    from recr1_lite.estimate_report import run

    return run(arguments)


def export(arguments) -> None:
    from recr1_lite.exports import run

    run(arguments, _profile(arguments), _task(arguments))


def serve(arguments) -> None:
    from recr1_lite.serve import run

    task = _task(arguments)
    run(arguments, _profile(arguments), task, _engine(arguments, task))


def report(arguments) -> None:
    from recr1_lite.ledger import Ledger
    from recr1_lite.report import report_markdown, write_report

    ledger, out = Ledger(arguments.ledger), Path(arguments.out)
    paths = [write_report(ledger, path, arguments.run)
             for path in ([out] if out.suffix else [out.with_suffix(".html"), out.with_suffix(".md")])]
    print(report_markdown(ledger, arguments.run))
    print(f"look at {' and '.join(map(str, paths))}")


def _profile(arguments):
    from recr1_lite.errors import RecR1Error
    from recr1_lite.profiles import get_profile

    profile = get_profile(arguments.profile)
    arguments.profile = profile.name
    steps = getattr(arguments, "steps", None)
    if steps is not None and steps < 1:
        raise RecR1Error(f"--steps {steps} is no training; give 1 or more")
    return profile.but(steps=steps or profile.steps, report_to=getattr(arguments, "report_to", "none"))


def _task(arguments):
    from recr1_lite.errors import RecR1Error
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
    from recr1_lite.engines import build_retriever

    return build_retriever(arguments.retriever, task.items)


def _out(arguments) -> Path:
    """--out, else the next free folder under runs/; with --resume the last one there."""
    from recr1_lite.files import free_folder, runs_folder

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


COMMANDS = {"doctor": doctor, "prepare": prepare, "demo": demo, "train": train, "evaluate": evaluate,
            "inspect": inspect, "capability": capability, "compare": compare, "estimate": estimate, "export": export,
            "serve": serve, "report": report}

if __name__ == "__main__":
    sys.exit(main())
