"""What a run of either trainer shares: its folder, what made it, its order and settings, going on where it was stopped,
and the watch over it: validation, the best adapter, a line per step, a sentence when something looks wrong."""

import hashlib
import importlib.util
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers import PrinterCallback, TrainerCallback

from recr1_lite.assets.fetch import note
from recr1_lite.common import RecR1Error, atomic_write, check_place, writing
from recr1_lite.ledger import begin, difference, main_process, read_json, record_of
from recr1_lite.policy.backend import choose
from recr1_lite.policy.models import Policy, save_adapter
from recr1_lite.policy.rollouts import MergedCopy
from recr1_lite.profiles import Profile
from recr1_lite.search.metrics import Interval
from recr1_lite.tasks.base import Task, sealed
from recr1_lite.tasks.prompts import Prompt

# TRL's name in the log -> this kit's name in a step's row; rewards and gains are nDCG units, lengths tokens
NAMES = {name: name for name in ("reward", "reward_std", "entropy", "kl", "distinct", "ndcg", "raw_ndcg", "gain")}
NAMES |= {"frac_reward_zero_std": "zero_advantage_share", "zero_advantage": "zero_advantage_share"}
NAMES |= {"completions/mean_length": "completion_length", "completions/clipped_ratio": "truncated_share"}
NAMES |= {"grad_norm": "grad_norm", "clip_ratio/region_mean": "clip_ratio", "kl_to_untrained": "kl"}
# what a step's line shows, where its trainer logs it (unsloth's logs no entropy)
LINE = {"reward": "reward {:.3f}", "gain": "gain {:+.3f}", "zero_advantage_share": "zero-advantage {:.0%}"}
LINE |= {"completion_length": "length {:.1f}", "entropy": "entropy {:.2f}", "seconds": "{:.1f} s"}
# Beginnings of names in a profile. FREE: may be another when a run goes on; it changes no number but for rounding, or
# is looked at apart (the model, and the steps, of which there may be more while the learning rate is constant).
FREE: tuple[str, ...] = ("name", "about", "model", "report_to", "steps", "sft_epochs", "max_prompt_tokens")
FREE += ("micro_batch", "batch_size", "gradient_checkpointing")
# UNUSED: the trainer or the recipe makes no use of it
UNUSED = {"GRPO": ("sft_", "n_", "best_of"), "demo": ("sft_", "best_of"), "compare": ("n_headroom", "n_capability")}
UNUSED |= {"SFT": ("preset", "recipe", "prompts_", "group_", "rollout_", "learning_rate", "fast_", "n_", "best_of")}


@dataclass(frozen=True)
class Run:
    """Where a run goes, and what goes on beside it.

    folder: gets `run.json`, `checkpoint-N`, `best`, `last` and `training.json`. validate: scores the policy, of which
    it gets the merged copy, before the first step, every `profile.validate_every` steps and after the last; the adapter
    that it likes best is kept. seed: of the rollouts and the order. resume: go on from the newest whole checkpoint, to
    the same adapter as an uninterrupted run (CPU, float32), with the policy loaded as it was at first. progress: print
    a line per step. watch: gets the rows of all steps and of all validations so far, before the first step and after
    each (`curves.LiveCurves` draws them). task: whose examples these are; its prompts are measured before the start,
    those of the sealed test too. made: what else makes the run, such as the adapter that it starts from."""

    folder: Path
    validate: Callable[[MergedCopy | None], Interval] | None = None
    seed: int = 0
    resume: bool = False
    progress: bool = True
    watch: Callable[[list[dict], list[dict]], object] | None = None
    task: Task | None = None
    made: Mapping = field(default_factory=dict)

    def begin(self, trainer: str, policy: Policy, profile: Profile, prompt: Prompt, config, **made) -> Path | None:
        """Check what the run needs and note what makes it; returns the checkpoint to go on from, if any.

        config: TRL's. Raises RecR1Error: as `ledger.begin`, for prompts that are too long, for a folder that cannot be
        written or whose disk is too full, for a run that is past its last step."""
        newest = last_checkpoint(self.folder, config.max_steps if self.resume else None)
        if self.task:
            self.task.check_prompts(policy.tokenizer, profile.max_prompt_tokens, prompt)
        check_place(self.folder, disk_needed(policy, resumed=newest is not None))
        if not config.lr_scheduler_type.startswith("constant"):  # another end would be another rate at each step
            made["steps"] = config.max_steps
        told = made_by(trainer, policy, profile, prompt, self.seed, self.task, **self.made, **made)
        begin(self.folder, told, self.resume, used=newest is not None)
        return newest


@dataclass
class Training:
    """What a run leaves: one dict per step (`curve`), one per validation (`val`), the best step, why it stopped
    ("finished" or "interrupted")."""

    curve: list[dict]
    val: list[dict]
    best_step: int
    seconds: float
    stopped: str
    folder: Path

    @property
    def adapter(self) -> Path:
        """The adapter that scored best on val; without validation, the last one."""
        return self.folder / "best"


def made_by(kind: str, policy: Policy, profile: Profile, prompt: Prompt, seed: int, task: Task | None, **more) -> dict:
    """What makes a run, for `ledger.begin`. kind: of UNUSED; more: what that kind knows beside."""
    weights = hashlib.sha256()
    for name, weight in policy.model.named_parameters():
        if "lora_" not in name:  # the first numbers of each matrix tell one model from another
            weights.update(f"{tuple(weight.shape)}{weight.flatten()[:8].tolist()}".encode())
    model = {"name": model_name(profile), "weights": weights.hexdigest()[:16]}
    used = {name: value for name, value in vars(profile).items() if not name.startswith(UNUSED[kind] + FREE)}
    told = {"by": kind, "task": task and task.name, "seed": seed, "model": model, "profile": used}
    return told | {"prompt": asdict(prompt)} | more | {"data": task and task.fingerprint}


def model_name(profile: Profile) -> str:
    """The profile's model, of a local folder its last part: the folder may move."""
    return Path(profile.model).name if Path(profile.model).exists() else profile.model


def check_adapter(adapter: str | Path, profile: Profile, task: Task) -> None:
    """Say on stderr where an adapter was trained for another task or prompt, as far as its run's folder tells. Raises
    RecR1Error for one of another model."""
    if not (made := record_of(Path(adapter).parent).get("made")):
        return
    if other := difference(made["model"]["name"], model_name(profile), "model"):
        raise RecR1Error(f"the adapter {adapter} is of a run {other}; give the profile of that run (--profile)")
    here = {"task": task.name if made["task"] else None, "prompt": asdict(task.prompt)}
    if other := difference({key: made[key] for key in here}, here):
        note(f"the adapter {adapter} is of a run {other}: its scores here are those of a transfer")


def disk_needed(policy: Policy, resumed: bool = False) -> int:
    """Bytes that a run may take on the disk: three checkpoints while one is written, `best`, `last` and one in work."""
    adapter = sum(4 * weight.numel() for weight in policy.model.parameters() if weight.requires_grad)
    checkpoint = 4 * adapter + 100 * len(policy.tokenizer)  # weights, two moments, the KL reference; the tokenizer
    return (1 if resumed else 3) * checkpoint + 3 * adapter + 2**20


class KitTrainer:
    """Goes before a trainer of TRL: the merged copy that rollouts and validation use, no telemetry, no model card.

    TRL makes the adapter of a 4-bit model bfloat16. Here it stays float32: a step of 1e-6 is lost in bfloat16's eight
    bits, and the scaler of float16 training (a T4) refuses it."""

    def __init__(self, model, *args, **others):
        exact = {name: weight.data.float() for name, weight in model.named_parameters() if weight.requires_grad}
        others["args"]._n_gpu = min(1, others["args"].n_gpu)  # of several cards that one process sees, one trains
        super().__init__(model, *args, **others)
        for name, weight in self.model.named_parameters():
            weight.data = exact.get(name, weight.data)

    @cached_property
    def merged(self) -> MergedCopy | None:
        return MergedCopy.of(self.accelerator.unwrap_model(self.model))  # type: ignore[attr-defined]

    def _send_telemetry(self):
        pass

    def create_model_card(self, *args, **kwargs):
        pass


def settings(profile: Profile, run: Run) -> dict:
    """The fields of TRL's configurations that GRPO and SFT have alike. Raises RecR1Error for a missing tracker."""
    cuda, dtype, tracker = torch.cuda.is_available(), choose(profile, "transformers").dtype, profile.report_to
    if tracker not in ("none", "all") and importlib.util.find_spec(tracker) is None:
        advice = f"run `pip install {tracker}`, or take none"
        raise RecR1Error(f"report_to={tracker!r} needs the package {tracker}; {advice}")
    here = dict(use_cpu=not cuda, bf16=cuda and dtype == "bfloat16", fp16=cuda and dtype == "float16")
    told = dict(logging_steps=1, report_to=tracker, disable_tqdm=True)
    kept = dict(output_dir=str(run.folder), save_steps=profile.validate_every, save_total_limit=2)
    # rates 0, 1/2, then 1: Adam has seen two gradients before it takes a whole step
    steps = dict(lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_grad_norm=1.0)
    data = dict(seed=run.seed, shuffle_dataset=False, dataloader_pin_memory=cuda, ddp_find_unused_parameters=False)
    return here | told | kept | steps | data | dict(gradient_checkpointing=profile.gradient_checkpointing)


def run_trainer(trainer, monitor: "Monitor", checkpoint: Path | None) -> Training:
    """Train to the end or to Ctrl-C, the tests sealed, watched by `monitor`; the seconds are the whole run's.

    Raises RecR1Error where another process trains in the folder, and where a checkpoint cannot be written."""
    folder = monitor.run.folder
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(monitor)
    before = read_json(folder / "training.json") if checkpoint else None  # a killed run left none
    start = time.perf_counter() - (before or {}).get("seconds", 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    lock = alone(folder / ".lock", f"another process trains in {folder}") if main_process() else nullcontext()
    with lock, writing(folder), sealed():
        with monitor.interruptible():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return monitor.close(time.perf_counter() - start)


@contextmanager
def alone(lock: Path, problem: str) -> Iterator[None]:
    """While inside, nobody else holds this lock. Raises RecR1Error, with the problem, where somebody does."""
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise RecR1Error(f"{problem}; wait for it, or give another place") from None
    with held:
        yield


def draw_order(examples: int, count: int, seed: int) -> list[int]:
    """`count` row numbers: all examples in random order, then all again in another. A longer draw starts alike."""
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(examples).tolist() for _ in range(-(-count // examples))]
    return sum(rounds, [])[:count]


def last_checkpoint(folder: str | Path, steps: int | None = None) -> Path | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last), or None. Raises RecR1Error for
    one that is beyond `steps`."""
    numbered = {int(path.name[11:]): path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()}
    at = max([step for step, path in numbered.items() if read_json(path / "trainer_state.json") is not None], default=0)
    if steps is not None and at > steps:
        beyond = f"{folder} is at step {at}, beyond the {steps} steps asked for"
        raise RecR1Error(f"{beyond}; ask for more, or give another folder (--out)")
    return numbered.get(at)


class Monitor(TrainerCallback):
    """Validates, keeps the best adapter, prints one line per step, and says when something looks wrong. Of several
    processes all validate, and the first one prints and writes.

    Everything it knows is in the trainer's log history, which every checkpoint holds, so a resumed run has it all."""

    def __init__(self, trainer, policy: Policy, profile: Profile, run: Run):
        self.trainer, self.policy, self.profile = trainer, policy, profile
        self.run = run if main_process() else replace(run, progress=False, watch=None)
        self.ended = False  # by a rule of the run itself, before its last step
        self.stop_asked, self.seconds = False, 0.0
        self.said: set[str] = set()

    def on_train_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.score(state)
        self.keep_best(state)
        self.show(state)
        self.started, self.first_step = time.perf_counter(), state.global_step

    def on_step_begin(self, args, state, control, **_):
        self.step_start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.step_start
        self.stop_asked = any(gather_object([self.stop_asked]))  # in whichever process
        control.should_training_stop |= self.stop_asked
        control.should_save |= self.stop_asked or self.due(state)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}):  # the summary at the end of a run
            return
        log = state.log_history[-1]
        row = {"step": log["step"], **{ours: log[theirs] for theirs, ours in NAMES.items() if theirs in log}}
        row |= {key: value for key, value in log.items() if key.startswith(("rewards/", "outcome/"))}
        row = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        log["recr1"] = row = row | {"seconds": round(self.seconds, 2)}
        per_step = (time.perf_counter() - self.started) / (state.global_step - self.first_step)
        self.tell(row, state, per_step * (state.max_steps - state.global_step))
        if self.due(state):
            self.score(state)
        self.show(state)

    def on_save(self, args, state, control, **_):
        # after the checkpoint is whole: a kill in between loses neither, because a resumed run repairs `best`
        self.keep_best(state)

    def tell(self, row: dict, state, left: float) -> None:
        """A line on this step, and a sentence on what looks wrong, said once. left: seconds to go."""
        if self.run.progress:
            shown = [text.format(row[key]) for key, text in LINE.items() if key in row]
            step = f"step {row['step']:>4}/{state.max_steps}"
            print("  ".join([step, *shown, f"left {left / 60:.1f} min"]), flush=True)
        for warning in suspicions(steps(state), self.profile):
            if warning not in self.said and main_process():
                self.said.add(warning)
                print(f"  note: {warning}", file=sys.stderr, flush=True)

    def due(self, state) -> bool:
        return state.global_step % self.profile.validate_every == 0 or state.global_step == state.max_steps

    def show(self, state) -> None:
        if self.run.watch:
            self.run.watch(steps(state), points(state))

    def score(self, state) -> None:
        if not self.run.validate:
            return
        interval = self.run.validate(getattr(self.trainer, "merged", None))
        state.log_history.append({"step": state.global_step, "val": interval._asdict()})
        if self.run.progress:
            best = "  best so far" if best_step(state) == state.global_step else ""
            print(f"val  {state.global_step:>4}  {interval}{best}", flush=True)

    def keep_best(self, state) -> None:
        """Save the adapter as `best` if this very step is the best on val so far."""
        if best_step(state) == state.global_step and main_process():
            save_adapter(self.policy, self.run.folder / "best")

    def close(self, seconds: float) -> Training:
        """Save what is left to save and describe the run in training.json. seconds: earlier parts included."""
        state, folder = self.trainer.state, self.run.folder
        best = best_step(state)
        for name in (("last",) if best is not None else ("last", "best")) if main_process() else ():
            save_adapter(self.policy, folder / name)
        stopped = "finished" if self.ended or state.global_step >= state.max_steps else "interrupted"
        best = state.global_step if best is None else best
        done = Training(steps(state), points(state), best, seconds, stopped, folder)
        told = asdict(done) | {"folder": folder.name, "profile": asdict(self.profile)}
        if main_process():
            atomic_write(folder / "training.json", json.dumps(told, indent=1))
        return done

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """First Ctrl-C: stop after this step and keep everything; second: stop now. Nothing in a thread of its own."""

        def ask(number, frame):
            if self.stop_asked:
                raise KeyboardInterrupt
            self.stop_asked = True
            print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, ask) if main else None
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGINT, before)


def points(state) -> list[dict]:
    """Validation points of a trainer's state: dicts of step, mean, low, high, n."""
    return [{"step": row["step"], **row["val"]} for row in state.log_history if "val" in row]


def best_step(state) -> int | None:
    """The step of the best validation point, the earliest of equals; None without validation."""
    return max(points(state), key=lambda point: point["mean"], default={"step": None})["step"]


def steps(state) -> list[dict]:
    """The rows of the steps so far."""
    return [row["recr1"] for row in state.log_history if "recr1" in row]


def suspicions(curve: list[dict], profile: Profile, window: int = 5) -> Iterator[str]:
    """Sentences on what looks wrong in the last `window` steps: no signal, length at the limit, no diversity, collapse.

    Small models collapse when they run long (rasbt's GRPO of chapter 6 between steps 50 and 100); the adapter that was
    best on val is kept, so that a run may be stopped there."""
    names = ["zero_advantage_share", "truncated_share", "distinct", "entropy", "ndcg", "completion_length"]
    table = pd.DataFrame(curve, columns=names, dtype=float)  # what the trainer does not log is NaN, never suspicious
    means = table.rolling(window).mean()
    if len(means) < window:
        return
    unpaid, cut, distinct, entropy, ndcg, length = means.iloc[-1]
    slower, kept = "lower the learning rate", "the adapter that was best on val is kept"
    if unpaid > 0.8:
        advice = "raise the temperature or the group size, or look at the reward"
        yield f"over 80% of the groups pay all their rollouts the same, so they teach nothing; {advice}"
    if cut > 0.9 and table["truncated_share"][0] < 0.5:
        limit = f"completions now run to the limit of {profile.max_completion_tokens} tokens"
        yield f"{limit}; look at some of them, and raise the limit or use the length_penalised recipe"
    if distinct < 0.3:
        same = "rollouts of one group are mostly the same text; the policy has stopped exploring"
        yield f"{same}: {slower} or raise the temperature"
    if entropy < 0.1:  # nats per token
        yield f"the entropy is all but gone, so nothing new is tried; stop here ({kept})"
    if entropy > 1.5 * table["entropy"][0]:
        yield f"the entropy is far above its start, so the text dissolves; {slower} ({kept})"
    if ndcg < means["ndcg"][:-1].max() / 2:
        yield f"the nDCG of the rollouts is under half of what it was; {slower} ({kept})"
    if length < 1.5:
        yield f"answers have shrunk to nothing; look at the reward for silence ({kept})"
