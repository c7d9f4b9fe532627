"""The bridge to lm-evaluation-harness: its tasks, with this kit's items or a benchmark's own files, run on a model.

Prompts, filters and scores are the harness's (arXiv 2405.14782). Added here: data from local files, NLTK's punkt_tab
from the kit's cache (the harness would download it at import), a shared prompt pass, and limits for generated programs.
Those limits are for programs that are wrong, not for ones that are out to get you: a container is the place for those.
"""

import contextlib
import importlib
import io
import logging
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from recr1_lite import assets
from recr1_lite.common import RecR1Error, place_folder
from recr1_lite.policy.rewriters import padded
from recr1_lite.policy.rollouts import completion_logps
from recr1_lite.tasks.readers import csv_cells, read_rows

OFFLINE = ("instructions", "arithmetic", "knowledge", "reading", "perplexity")
BENCHMARKS = ("ifeval", "gsm8k", "mmlu", "humaneval")
# the original MMLU has no line of names and letters; the Hub's export has one, and places 0 to 3
LETTERS = {mark: place for marks in ("ABCD", "0123") for place, mark in enumerate(marks)}
PUT = "put the benchmark's original file there"
NO_THOUGHT: dict = dict(enable_thinking=False, think_end_token="</think>")  # a thought is no answer


def settings(**splits: list[dict]) -> dict:
    """Settings that make a task of the harness read these rows. splits: name -> rows."""
    from datasets import Dataset

    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    return {"custom_dataset": lambda **_: data, "dataset_path": None, "dataset_name": None, "metadata": None}


def local_settings(suite: str, folder: Path) -> dict:
    """Settings that make a benchmark read its own files; gsm8k has worked examples of gsm8k_train.jsonl or none."""

    def rows(name: str) -> list[dict]:
        return [dict(row) for row in read_rows(folder / name, "the data folder")[1]]

    if suite == "ifeval":
        return settings(train=rows("ifeval.jsonl"))
    if suite == "humaneval":
        return settings(test=rows("HumanEval.jsonl.gz"))
    if (folder / "gsm8k_train.jsonl").is_file():
        return settings(test=rows("gsm8k_test.jsonl"), train=rows("gsm8k_train.jsonl"))
    no_examples = {"num_fewshot": 0, "training_split": None, "fewshot_split": None}
    return settings(test=rows("gsm8k_test.jsonl")) | no_examples


def mmlu_rows(path: Path) -> list[dict]:
    """The questions of one file of MMLU."""
    rows = []
    for place, cells in csv_cells(path, path.name, strict=False):
        if len(cells) == 6 and cells[5] in LETTERS:
            rows.append({"question": cells[0], "choices": cells[1:5], "answer": LETTERS[cells[5]]})
        elif rows or cells[-1] != "answer":  # which ends a line of names
            raise RecR1Error(f"{place} is not question, four choices, letter; {PUT}")
    if not rows:
        raise RecR1Error(f"{path.name} in the data folder is empty; {PUT}")
    return rows


# Refused from inside: what would change files, start a process, or reach another machine (PEP 578 audit events).
GUARD = """import sys as _sys
def _guard(event, details):
    if event == "open":
        mode, flags = str(details[1] or ""), int(details[2] or 0)
        if any(letter in mode for letter in "wax+") or flags & 3:
            raise PermissionError("a generated program may not write files")
    elif event in _EVENTS or event.partition(".")[0] in _MODULES:
        raise PermissionError("a generated program may not use " + event)
_MODULES = {"subprocess", "socket", "shutil", "ctypes", "_posixsubprocess"}
_EVENTS = {"os." + name for name in ("remove rename rmdir mkdir system exec fork forkpty posix_spawn spawn kill killpg "
            "chmod chown link symlink truncate putenv chdir utime setxattr removexattr").split()}
_sys.addaudithook(_guard)
del _sys
"""


def run_program(source: str, seconds: float = 5.0) -> str:
    """ "passed" where the program ran to its last line, else "failed", or "stopped" after `seconds`.

    It runs with an empty environment in an empty folder that is removed, in 1 GB of address space. Raises RecR1Error
    on a system without these limits (Windows)."""
    if os.name != "posix":
        where = "generated code is executed only under Linux or macOS, where its process can be limited"
        raise RecR1Error(f"{where}; run without execute_code there")

    def limit() -> None:
        """In the child, before Python starts there."""
        import resource

        wanted = {"CPU": int(seconds) + 1, "AS": 10**9, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 32}
        for name, value in wanted.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):  # a system that lacks one has the others
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    verdict = 64 + secrets.randbelow(50)  # a program that leaves early cannot know it
    program = f"{GUARD}\n{source}\nimport os as _os\n_os._exit({verdict})\n"
    with tempfile.TemporaryDirectory(prefix="recr1-code-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8")
        alone: dict = dict(cwd=folder, env={}, start_new_session=True, preexec_fn=limit)
        alone |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        process = subprocess.Popen([sys.executable, "-I", "-S", "-B", str(path)], **alone)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "stopped"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "passed" if code == verdict else "failed"


def kit_folder() -> Path:
    """data/capability of the checkout. Raises RecR1Error where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "data" / "capability"
    if not (folder / "utils.py").is_file():
        advice = "run from a checkout of the repository (`pip install -e .`), or put the folder back with git"
        raise RecR1Error(f"data/capability is missing beside the package; {advice}")
    return folder


def punkt() -> None:
    """Let NLTK find punkt_tab in the kit's cache, unpacked there at first use: English alone, for NLTK does not read
    its tables inside a zip. Raises RecR1Error as `assets.fetch`, and for a cache that cannot be written."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # else its guess, and with it a score, can differ from run to run
    home = assets.cache_folder() / "nltk"
    if not home.is_dir():
        with zipfile.ZipFile(assets.fetch("punkt-tab")) as zipped:
            wanted = [name for name in zipped.namelist() if "/english/" in name or name.endswith("README")]
            place_folder(home, lambda work: zipped.extractall(work / "tokenizers", wanted))
    if str(home) not in nltk.data.path:
        nltk.data.path.insert(0, str(home))


def load_tasks(
    suite: str, data_dir: str | Path | None = None, max_gen_toks: int | None = None, execute_code: bool = False
) -> list:
    """The harness's task objects of a suite: `offline` (this kit's items) or one of BENCHMARKS.

    A benchmark comes from the Hub by name, or, with `data_dir`, from files in their original formats: ifeval.jsonl,
    gsm8k_test.jsonl (and gsm8k_train.jsonl for the five worked examples), HumanEval.jsonl.gz, mmlu/SUBJECT_test.csv and
    _dev.csv. Raises RecR1Error: unknown suite, missing file, the Hub out of reach or forbidden."""
    if suite not in ("offline", *BENCHMARKS):
        raise RecR1Error(f"there is no suite {suite!r}; choose offline, {', '.join(BENCHMARKS)}")
    if suite in ("offline", "ifeval"):
        punkt()
    if suite == "offline":
        return [_task(kit_folder() / f"recr1_{name}.yaml", {}, max_gen_toks) for name in OFFLINE]
    if data_dir is None and assets.offline():
        why = f"{suite} comes from the Hugging Face Hub and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network"
        raise RecR1Error(f"{why}; unset it, or name a folder that holds its files with data_dir (--data-dir)")
    built_in = Path(str(importlib.import_module("lm_eval.tasks").__file__)).parent / suite
    if suite == "mmlu":
        return _mmlu(built_in, data_dir)
    changes = {} if data_dir is None else local_settings(suite, Path(data_dir))
    if suite == "humaneval":  # its own scorer downloads code_eval and executes in this process tree: replaced
        name, scorer = ("pass@1", executed) if execute_code else ("answered", generated)
        metric = {"metric": name, "aggregation": "mean", "higher_is_better": True}
        changes |= {"unsafe_code": False, "filter_list": None, "metric_list": [metric], "process_results": scorer}
    name = "humaneval_instruct" if suite == "humaneval" else suite
    return [_task(built_in / f"{name}.yaml", changes, max_gen_toks, resolve=suite != "humaneval")]


def _mmlu(built_in: Path, data_dir: str | Path | None) -> list:
    """A task for each subject: for all of them, or those with a file mmlu/SUBJECT_test.csv."""
    yamls = {path.stem.removeprefix("mmlu_"): path for path in sorted((built_in / "default").glob("mmlu_*.yaml"))}
    if data_dir is None:
        return [_task(path, {}) for path in yamls.values()]
    folder, tasks = Path(data_dir) / "mmlu", []
    for subject, path in yamls.items():
        if (folder / f"{subject}_test.csv").is_file():
            rows = {split: mmlu_rows(folder / f"{subject}_{split}.csv") for split in ("test", "dev")}
            tasks.append(_task(path, settings(**rows)))
    if not tasks:
        raise RecR1Error(f"mmlu/ in the data folder has no SUBJECT_test.csv; {PUT}")
    return tasks


def run_tasks(
    model, tokenizer, tasks: Sequence, limit: int | None = None, seed: int = 0, batch_size: int = 50
) -> dict[str, list[dict]]:
    """Samples as the harness logs them, task -> one dict per item: doc_id, doc, arguments, resps, metrics, scores.

    limit: items per task, drawn with `seed`. The chat template is applied. The model's training mode and the
    tokenizer's padding are as before afterwards."""
    from lm_eval.evaluator import evaluate

    samples = None
    if limit is not None:
        sizes = {task.task_name: len(task.eval_docs) for task in tasks}
        samples = {name: sorted(random.Random(seed).sample(range(n), min(limit, n))) for name, n in sizes.items()}
    for task in tasks:  # what simple_evaluate does, less its survey of the machine, which takes seconds
        task.set_fewshot_seed(seed=seed)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    side, pad, training = tokenizer.padding_side, tokenizer.pad_token, model.training
    named = {"tasks": {task.task_name: task for task in tasks}, "groups": {}}
    chat: dict = dict(apply_chat_template=True, fewshot_as_multiturn=True)
    try:
        with quiet():
            lm = language_model(model, tokenizer, batch_size)
            return evaluate(lm, samples=samples, bootstrap_iters=0, task_dict=named, **chat)["samples"]
    finally:
        tokenizer.padding_side, tokenizer.pad_token = side, pad
        model.train(training)


def language_model(model, tokenizer, batch_size: int = 50):
    """The harness's HFLM on a model in memory, except that answers to one question share one pass of its prompt."""
    from lm_eval.models.huggingface import HFLM

    class SharedPromptLM(HFLM):
        @torch.no_grad()
        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            """(log-probability, False) of each (texts, prompt ids, answer ids); multiple choice reads the first."""
            scores: list = [None] * len(requests)
            order = sorted(range(len(requests)), key=lambda i: (len(requests[i][1]), requests[i][1]))
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                prompts = padded([requests[i][1] for i in batch], "left", self.device)
                answers, mask = padded([requests[i][2] for i in batch], "right", self.device)
                values, _ = completion_logps(self.model, *prompts, answers, mask)
                for i, total in zip(batch, (values * mask).sum(1).tolist(), strict=True):
                    scores[i] = (total, False)
            return scores

    return SharedPromptLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **NO_THOUGHT)


def executed(doc: dict, results: list[str]) -> dict[str, float]:
    """HumanEval's pass@1 of one answer, run in a subprocess with limits."""
    program = doc["prompt"] + results[0].split("```")[0]  # what humaneval_instruct's own filter keeps
    return {"pass@1": float(run_program(f"{program}\n{doc['test']}\ncheck({doc['entry_point']})\n") == "passed")}


def generated(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if there is an answer at all; it is not executed."""
    return {"answered": float(bool(results[0].strip()))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars, no notes of the harness, which would fill a notebook."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _task(path: Path, changes: dict, max_gen_toks: int | None = None, resolve: bool = True):
    """The task of a YAML with some settings changed; its data loaded."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    with quiet():
        config = load_yaml(path, resolve_func=resolve) | changes
        config = {key: value for key, value in config.items() if value is not None and key not in ("tag", "group")}
        if max_gen_toks and "generation_kwargs" in config:
            config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": max_gen_toks}
        try:
            return ConfigurableTask(config=config)
        except (OSError, ValueError) as error:
            advice = "mend the network, or name a folder that holds its files with data_dir (--data-dir)"
            why = " ".join(str(error).split())[:200]
            raise RecR1Error(f"{path.stem} could not be loaded ({why}); {advice}") from error
