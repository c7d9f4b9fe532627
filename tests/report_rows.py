"""What the tests of the report share: a curve of 40 steps, its validation, means with intervals, titles."""

STEADY = {"zero_advantage_share": 0.3, "completion_length": 12.0, "kl": None}
PARTS = {"rewards/format/mean": 0.1, "rewards/format/std": 0.3}


def spot(mean, half=0.03, n=50):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def step(place):
    reward = {"reward": 0.2 + 0.002 * place + 0.01 * (place % 3), "rewards/ndcg/mean": 0.1 + 0.002 * place}
    return {"step": place, **reward, "entropy": 1.5 - 0.01 * place, **STEADY, **PARTS}


CURVE = [step(place) for place in range(1, 41)]
VAL = [{"step": 0, **spot(0.24, 0.04)}, {"step": 40, "mean": 0.32, "low": 0.29, "high": 0.36, "n": 50}]


def finding(figure):
    return " ".join(figure.get_suptitle().split())
