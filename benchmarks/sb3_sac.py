# pyright: reportMissingImports=false
"""SAC of Stable-Baselines3 on HalfCheetah; run by a Python that has it. Never imported.

`python sb3_sac.py speed STEPS EVERY` prints the rate of STEPS steps, after 1,000 without updates: EVERY steps, then as
many updates.
`python sb3_sac.py learn STEPS SEED OUT` trains and writes evaluations of 10 greedy episodes every 5,000 steps.
"""

import json
import sys
import tempfile
import time

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor

WARMUP = 1_000


class Clock(BaseCallback):
    """Notes the time of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_step(self) -> bool:
        self.times.append(time.perf_counter())
        return True


def speed(steps: int, every: int) -> None:
    """Rate once warm; the first tenth of the updates is left out."""
    clock, extra = Clock(), steps // 10
    cadence = {"train_freq": every, "gradient_steps": every, "learning_starts": WARMUP}
    agent = SAC("MlpPolicy", gymnasium.make("HalfCheetah-v5"), **cadence, seed=0, device="cpu")
    agent.learn(WARMUP + extra + steps, callback=clock)
    rate = steps / (clock.times[-1] - clock.times[-1 - steps])
    print(json.dumps({"steps_per_second": rate, "threads": torch.get_num_threads()}))


def learn(steps: int, seed: int, out: str) -> None:
    """Train with the settings of our preset `paper`: 10,000 random steps first."""
    agent = SAC("MlpPolicy", gymnasium.make("HalfCheetah-v5"), learning_starts=10_000, seed=seed, device="cpu")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # without one the callback keeps no record
        cheetah = Monitor(gymnasium.make("HalfCheetah-v5"))
        judge = EvalCallback(cheetah, n_eval_episodes=10, eval_freq=5_000, log_path=folder, verbose=0)
        agent.learn(steps, callback=judge)
    found = {
        "seed": seed,
        "steps": [int(t) for t in judge.evaluations_timesteps],
        "returns": [float(np.mean(r)) for r in judge.evaluations_results],
        "minutes": (time.perf_counter() - started) / 60,
    }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    if sys.argv[1] == "learn":
        learn(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        speed(int(sys.argv[2]), int(sys.argv[3]))
