"""Whether a training that has failed is started again, and after which pause; how servers decide it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from src.cluster.agreement import Agreement, Gone
from src.cluster.logs import say
from src.cluster.outcome import ELSEWHERE, Outcome
from src.cluster.signals import Signals
from src.errors import InputError, TrainingError

PAUSE, LONGEST = 10, 600  # seconds of the first pause, which doubles each time, and of the longest
PROGRESS = 3600  # seconds of steps after which earlier restarts no longer count
# A restart would meet the same again.
NEVER = {InputError.exit_status: 'unusable input', TrainingError.exit_status: 'a training that has gone wrong'}


class Verdict(NamedTuple):
    """What follows a failure."""

    status: int  # of the launcher, if it ends
    pause: float | None  # seconds until the ranks are started again; None: they are not
    line: str  # for the user; '' if there is nothing to say
    saved: bool = False  # whether there is a checkpoint of this training to go on from


class Restarts:
    """Counts restarts. `allowed`: so many failures in a row are followed by one, as long as there is no progress."""

    def __init__(self, allowed: int):
        self.allowed, self.done, self.step, self.saved = allowed, 0, None, False

    def judge(self, outcome: Outcome) -> Verdict:
        """What follows the end of all ranks."""
        self.saved |= outcome.saved
        if not outcome.cause or outcome.signalled or not self.allowed:
            return Verdict(outcome.status, None, '')
        if outcome.progress >= PROGRESS:
            self.done = 0
        step = None if outcome.outside else outcome.step
        again, self.step = step is not None and step == self.step, step
        where = f'{outcome.cause}{f" at step {outcome.step}" if outcome.step else ""}'
        if outcome.code in NEVER:
            return Verdict(outcome.status, None, f'not started again: {where} means {NEVER[outcome.code]}')
        if again:
            return Verdict(outcome.status, None, f'given up: step {outcome.step} has failed twice running: {outcome.cause}')
        if self.done == self.allowed:
            return Verdict(outcome.status, None, f'given up after {self.done} restart(s) (--max_restarts): {where}')
        self.done += 1
        pause = min(PAUSE * 2 ** (self.done - 1), LONGEST)
        how = 'from the newest checkpoint' if self.saved else 'from where it began, as nothing was saved'
        line = f'restart {self.done} of {self.allowed} in {pause:g} s, {how}: {where}'
        return Verdict(outcome.status, pause, f'{line}: {outcome.line:.200}' if outcome.line else line, self.saved)


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a training, from those of its servers: the one that explains the others."""

    def rank(outcome):
        return (
            outcome.signalled,
            outcome.code in NEVER,
            bool(outcome.cause) and outcome.code != ELSEWHERE,
            bool(outcome.cause),
        )

    found = max(outcomes, key=rank)
    return found._replace(
        step=max((o.step for o in outcomes if o.step is not None), default=None),
        saved=any(o.saved for o in outcomes),
        progress=max(o.progress for o in outcomes),
    )


def run(start: Callable[[bool], Outcome], restarts: Restarts, signals: Signals, agreement: Agreement | None = None) -> int:
    """Start the ranks until they end well, or are not to be started again. Gives the launcher's exit status.

    Args:
        start: called with whether a checkpoint is to be gone on from; runs the ranks of this server to their end.
        agreement: the launchers of the other servers; they start together, and the first one decides for all.
    """
    saved, verdict = False, Verdict(Gone.exit_status, None, '')
    while True:
        try:
            if agreement and not agreement.meet(signals):
                return 128 + signals.numbers[0]
        except Gone as error:
            say(f'given up: {error}')
            return verdict.status
        outcome = start(saved)
        if agreement:
            found = agreement.settle(outcome, lambda outcomes: restarts.judge(worst([Outcome(*o) for o in outcomes])))
            verdict = Verdict(*found)
        else:
            verdict = restarts.judge(outcome)
        if signals.numbers:
            return 128 + signals.numbers[0]
        if verdict.line or agreement and verdict.status:
            say(verdict.line or 'another server was asked to end')
        if verdict.pause is None:
            return verdict.status
        if not signals.wait(verdict.pause):
            return 128 + signals.numbers[0]
        saved = verdict.saved
