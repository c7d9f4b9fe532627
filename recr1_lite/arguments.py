"""What the command line understands: commands, options, and their help."""

from __future__ import annotations

import argparse

EPILOG = """first steps:
  python -m recr1_lite doctor      is this machine ready?
  python -m recr1_lite demo        the whole loop, then look at runs/demo-<profile>-seed0/report.html
RECR1_PROFILE picks another profile, RECR1_CACHE another cache folder, RECR1_OFFLINE=1 forbids the network."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m recr1_lite", epilog=EPILOG, description=(
        "An LLM learns to write queries for a search engine from nothing but the engine's own ranking metric."),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, *groups: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if "profile" in groups:
            sub.add_argument("--profile", help="smoke, cpu, t4, gpu24 or paper (default: the one that fits)")
            sub.add_argument("--seed", type=int, default=0, help="of the adapter, the rollouts and the order")
        if "task" in groups:
            sub.add_argument("--task", default="clothing", help="clothing, movielens, esci, amazon_c4, amazon_reviews, "
                             "or custom with --items and --requests")
            sub.add_argument("--items", help="custom catalogue: CSV, JSONL or Parquet of item_id,title,text")
            sub.add_argument("--requests", help="custom requests: CSV, JSONL or Parquet of request,relevant")
            sub.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                             help="another option of the task (category=Video_Games), as often as needed")
            sub.add_argument("--retriever", default="bm25", help="bm25, dense, hybrid, or the http "
                             "address of a search server (default: bm25)")
        if "train" in groups:
            sub.add_argument("--steps", type=int, help="GRPO steps (default: the profile's)")
            sub.add_argument("--out", help="folder of the run (default: the next free one under runs/)")
            sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
            sub.add_argument("--report-to", default="none", metavar="TRACKER",
                             help="log to a tracker too: tensorboard, wandb, trackio (default: none)")
        return sub

    command("doctor", "check Python, packages, device, memory, disk, cache, and say what to do")
    command("prepare", "fetch the model and the data into the cache; afterwards no network is needed")
    command("demo", "run the loop: baselines, headroom, GRPO, sealed test, report", "profile", "task", "train")
    command("train", "GRPO alone: train an adapter, validate it as it goes", "profile", "task", "train")
    sub = command("evaluate", "score the raw request, the prompted model or an adapter", "profile", "task")
    sub.add_argument("--adapter", help="folder of a trained adapter (default: the model as it is)")
    sub.add_argument("--raw", action="store_true", help="score the request itself, no model")
    sub.add_argument("--split", default="val", choices=("train", "val", "test"),
                     help="test opens the sealed split and leaves a mark in the ledger")
    sub = command("inspect", "one request through the loop: rewrite, hits, and what an adapter changes", "profile",
                  "task")
    sub.add_argument("request", help="what the shopper says")
    sub.add_argument("--adapter", help="folder of a trained adapter to set beside the untrained model")
    sub = command("capability", "what an adapter did to everything else: general abilities before and after", "profile")
    sub.add_argument("--adapter", help="folder of a trained adapter (default: the untrained model alone)")
    sub.add_argument("--name", default="adapter", help="what the adapter is called in the table (default: adapter)")
    sub.add_argument("--suite", default="offline", choices=("offline", "ifeval", "gsm8k", "mmlu", "humaneval"),
                     help="offline: this kit's own sets; else a benchmark, from the Hub or from --data-dir")
    sub.add_argument("--data-dir", help="folder of the benchmarks' original files, instead of the Hub")
    sub.add_argument("--limit", type=int, help="items a task, drawn with --seed (default: the profile's, else all)")
    sub.add_argument("--max-tokens", type=int, help="longest generated answer (default: the benchmark's own)")
    sub.add_argument("--execute-code", action="store_true",
                     help="humaneval: run the programs that the model wrote, in a subprocess with limits")
    sub = command("compare", "every method at one budget on the sealed test, then general abilities, then a second task; "
                  "run again, it goes on where it was stopped", "profile")
    sub.add_argument("--out", help="folder of the run (default: runs/compare-<profile>-seed<seed>)")
    sub.add_argument("--methods", help="some of them, between commas (default: all)")
    sub.add_argument("--parts", default="methods,capability,continual", help="which of the three (default: all)")
    sub = command("estimate", "will it fit, and how long will it take? memory counted, time from a short measurement")
    sub.add_argument("--profile", help="smoke, cpu, t4, gpu24 or paper (default: the one that fits)")
    sub.add_argument("--model", help="another model than the profile's: a published Qwen2.5 size, or a local folder")
    sub.add_argument("--backend", choices=("unsloth", "transformers", "stock"),
                     help="trainer: unsloth's, this kit's, TRL's (default: what a run would take)")
    sub.add_argument("--group", type=int, help="rollouts of a prompt (default: the profile's)")
    sub.add_argument("--prompt-tokens", type=int, help="default: the profile's limit")
    sub.add_argument("--completion-tokens", type=int, help="default: the profile's limit")
    sub.add_argument("--memory", type=float, help="GB of the card (default: the profile's card, else this machine's)")
    sub.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=True,
                     help="measure this machine for a few seconds, for the time (default: yes)")
    sub = command("export", "leave with your model: adapter, merged 16-bit folder and GGUF, each loaded back and checked",
                  "profile", "task")
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
    sub = command("serve", "a local address for a rewriter: a page to try, JSON of rewrite and results, OpenAI's chat",
                  "profile", "task")
    sub.add_argument("--adapter", help="folder of a trained adapter on the profile's model")
    sub.add_argument("--model", help="a merged folder or a .gguf file instead")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    sub.add_argument("--k", type=int, default=10, help="results a request (default: 10)")
    sub = command("report", "make the report of a run from the ledger")
    sub.add_argument("--run", help="name of the run (default: the last)")
    sub.add_argument("--out", default="runs/report", help="file to write, .html or .md; without a suffix both "
                     "(default: runs/report)")
    sub.add_argument("--ledger", help="ledger file (default: the runs folder's ledger.jsonl)")
    return top
