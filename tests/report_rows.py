"""What the tests of the report share: rows of a ledger, a curve of 40 steps, its validation, means with intervals."""

STEADY = {"zero_advantage_share": 0.3, "completion_length": 12.0, "kl": None}
PARTS = {"rewards/format/mean": 0.1, "rewards/format/std": 0.3}


def spot(mean, half=0.03, n=50):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def step(place):
    reward = {"reward": 0.2 + 0.002 * place + 0.01 * (place % 3), "rewards/ndcg/mean": 0.1 + 0.002 * place}
    return {"step": place, **reward, "entropy": 1.5 - 0.01 * place, **STEADY, **PARTS}


CURVE = [step(place) for place in range(1, 41)]
VAL = [{"step": 0, **spot(0.24, 0.04)}, {"step": 40, "mean": 0.32, "low": 0.29, "high": 0.36, "n": 50}]


def eval_row(method, mean, split="test", **more):
    row = {"kind": "eval", "task": "toy", "method": method, "split": split, "n": 50, "seconds": 2.5, "seed": 0}
    return row | {"tokens": 1234, "metrics": {"ndcg@100": spot(mean)}, "retriever": "BM25Retriever"} | more


def compare_row(a, b, mean, half, **more):
    row = {"kind": "compare", "task": "toy", "split": "test", "metric": "ndcg@100", "a": a, "b": b, "seed": 0}
    return row | {"difference": spot(mean, half)} | more


TRAIN = {"kind": "train", "task": "toy", "method": "GRPO", "metric": "ndcg@100", "curve": CURVE, "val": VAL}
TRAIN |= {"seconds": 9.0, "stopped": "finished", "config": {"model": "smollm2-135m-instruct"}}


def finding(figure):
    return " ".join(figure.get_suptitle().split())
