"""What a simulated world's logs tell of what they do not hold: samples of its posterior, by the simulator's formulas.

Gibbs sampling, for all users at once, of interests in topics, readiness to click, patience and favourites; and, unless
they are given, of the quality and the second topic of every streamer. Three things speak of a user: what was shown
(feeds draw topics by interest), what was clicked, and how long it was watched. In a world with a conflict of .5 and
without friends nothing else in the logs does.
"""

import math

import numpy as np
import torch
from exposures import Rows, T
from scipy.special import gammaln, roots_jacobi

from livetrain.trainers.data.simulator import live
from livetrain.trainers.data.simulator.chances import CLICK, STAY
from livetrain.trainers.data.simulator.world import FAVOURITES, SPARSITY, World

FIRST, SECOND = (weight / math.sqrt(1 + live.SECOND_TOPIC**2) for weight in (1, live.SECOND_TOPIC))


class Chain:
    """A Gibbs sampler of what the logs do not hold, for all users at once.

    Args:
        world: for what is known: priors, who has which topic, and with `known` all of the streamers.
        on_air: (S, slots) bool.
        rows: of the days that the posterior is given.
        known: the streamers' quality and second topic are given, and not drawn.
        shown: what was shown tells of interests; else only what was done does.
        before: another chain whose last state is gone on from.
        seed: of the draws.
    """

    def __init__(
        self,
        world: World,
        on_air: torch.Tensor,
        rows: Rows,
        *,
        known: bool,
        shown: bool,
        seed: int,
        before: "Chain | None" = None,
    ):
        self._world, self._on_air, self._rows, self._known, self._shown = world, on_air, rows, known, shown
        self._random = torch.Generator().manual_seed(seed)
        self._prior = Prior()
        streamers, number = world.streamers, len(world.users)
        self._topic = torch.from_numpy(streamers.topic.astype(np.int64))
        old = torch.from_numpy(streamers.born == 0)
        weight = torch.from_numpy(streamers.weight) * old
        of_topic = torch.zeros(T, dtype=torch.float64).index_add_(0, self._topic, weight)
        self._within = (weight / of_topic[self._topic]).float()  # chance of a favourite, given its topic
        order = torch.argsort(self._topic, stable=True)
        self._by_topic, self._passed = order, torch.cumsum(weight[order] / of_topic[self._topic[order]], 0)
        self._count = torch.bincount(rows.user, minlength=number)
        self._first = torch.cumsum(self._count, 0) - self._count
        if before is None:
            self.y = self._prior.draw((number, T), self._random)
            self.bias, self.patience = (self._normal(number) * 0.4 for _ in range(2))
            self.favourites = torch.stack([self._favourite(self.x) for _ in range(FAVOURITES)], dim=1)
            self.quality = torch.from_numpy(streamers.quality).clone() if known else self._normal(len(streamers))
            self.second = torch.from_numpy(streamers.second.astype(np.int64))
            if not known:
                self.second = (self._topic + torch.randint(1, T, (len(streamers),), generator=self._random)) % T
        else:
            for name in ("y", "bias", "patience", "favourites", "quality", "second"):
                setattr(self, name, getattr(before, name).clone())
        off = rows.topic != self._topic[rows.streamer]
        self._told = torch.zeros(len(streamers), dtype=torch.bool)  # a room on the second topic was seen
        self._told[rows.streamer[off]] = True
        self.second[rows.streamer[off]] = rows.topic[off]

    @property
    def x(self) -> torch.Tensor:
        """(U, topics) interests."""
        return self._prior.low + self.y

    def sweep(self) -> None:
        """Draw everything anew, each part given the others."""
        rows = self._rows
        self._affinity = self._affinities(self.x, self.second[rows.streamer])
        self._liked = (self.favourites[rows.user] == rows.streamer[:, None]).float().sum(1)
        self._change_favourites()
        self._change_interests(self._sources())
        self.bias = self._walk(self.bias, 0.4, rows.user, len(self.bias), lambda by: self._done(bias=by))
        self.patience = self._walk(self.patience, 0.4, rows.user, len(self.bias), lambda by: self._done(patience=by))
        if not self._known:
            at, number = rows.streamer, len(self.quality)
            self.quality = self._walk(self.quality, 1.0, at, number, lambda by: self._done(quality=by))
            self._change_seconds()

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._random)

    def _affinities(self, x: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        rows = self._rows
        return FIRST * x[rows.user, rows.topic] + SECOND * x[rows.user, second]

    def _done(
        self, part=slice(None), *, affinity=None, liked=None, bias=0.0, patience=0.0, quality=0.0
    ) -> torch.Tensor:
        """Return the log-likelihood of what was done at rows, with changes."""
        rows = self._rows
        user, streamer = rows.user[part], rows.streamer[part]
        given = {
            "interest": self._affinity[part] if affinity is None else affinity,
            "quality": self.quality[streamer] + quality,
            "burst": rows.burst[part],
            "favourite": (self._liked[part] > 0).float() if liked is None else liked,
        }
        click, stay = logits(given, self.bias[user] + bias, self.patience[user] + patience)
        return log_done(click, stay, rows.click[part], rows.stays[part])

    def _total(self, values: torch.Tensor, at: torch.Tensor, number: int) -> torch.Tensor:
        return torch.zeros(number).index_add_(0, at, values)

    def _accept(self, ratio: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.rand(len(ratio), generator=self._random)) < ratio

    def _walk(self, value: torch.Tensor, deviation: float, at: torch.Tensor, number: int, likelihood) -> torch.Tensor:
        """Return a normal part after a step of a random walk, the shorter the more was seen."""
        seen = torch.bincount(at, minlength=number).float()
        step = self._normal(number) * 1.7 / torch.sqrt(1 / deviation**2 + 0.05 * seen)
        ratio = self._total(likelihood(step[at]) - likelihood(0.0), at, number)
        moved = value + step
        ratio += (value**2 - moved**2) / (2 * deviation**2)
        return torch.where(self._accept(ratio), moved, value)

    def _change_interests(self, drawn: torch.Tensor) -> None:
        """Draw interests, topic by topic.

        Args:
            drawn: (U, topics) how often a user's interest drew each topic.
        """
        rows, second, number = self._rows, self.second[self._rows.streamer], len(self.y)
        total = drawn.sum(1)
        for topic in torch.randperm(T, generator=self._random).tolist():
            old, low = self.y[:, topic], self._prior.low
            kind = int(torch.randint(0, 5, (), generator=self._random))
            fresh = (
                self._prior.draw((number,), self._random)
                if kind == 4
                else old * torch.exp(self._normal(number) * (0.1, 0.35, 1.0, 3.0)[kind])
            )
            fresh = fresh.clamp(1e-9, 30.0)
            all_of = torch.exp(self.x).sum(1)
            ratio = drawn[:, topic] * (fresh - old)
            ratio -= total * (torch.log(all_of - torch.exp(low + old) + torch.exp(low + fresh)) - torch.log(all_of))
            if kind != 4:
                ratio += self._prior.log_density(fresh) - self._prior.log_density(old)
            part = torch.nonzero((rows.topic == topic) | (second == topic)).squeeze(1)
            user = rows.user[part]
            share = FIRST * (rows.topic[part] == topic).float() + SECOND * (second[part] == topic).float()
            changed = self._affinity[part] + share * (fresh - old)[user]
            ratio += self._total(self._done(part, affinity=changed) - self._done(part), user, number)
            taken = self._accept(ratio)
            self.y[:, topic] = torch.where(taken, fresh, old)
            self._affinity[part] = torch.where(taken[user], changed, self._affinity[part])

    def _sources(self) -> torch.Tensor:
        """Draw which exposures a user's interest chose; return (U, topics) their number, favourites' among them."""
        number = len(self.y)
        drawn = torch.zeros(number * T)
        users = torch.arange(number)
        for turn in range(FAVOURITES):
            drawn.index_add_(0, users * T + self._topic[self.favourites[:, turn]], torch.ones(number))
        if self._shown:
            rows = self._rows
            personal, whole = self._exposed(
                self._liked, self._off(), torch.log_softmax(self.x, 1)[rows.user, rows.topic]
            )
            chosen = torch.rand(len(whole), generator=self._random) * whole < personal
            drawn.index_add_(0, (rows.user * T + rows.topic)[chosen], torch.ones(int(chosen.sum())))
        return drawn.view(number, T)

    def _off(self) -> torch.Tensor:
        """Return (n,) the number of the user's favourites who are not on air."""
        return sum(self._away(self.favourites[:, turn]) for turn in range(FAVOURITES))

    def _away(self, favourite: torch.Tensor) -> torch.Tensor:
        return (~self._on_air[favourite[self._rows.user], self._rows.slot]).float()

    def _exposed(
        self, liked: torch.Tensor, off: torch.Tensor, log_share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._rows
        return exposed(rows.by_topic, rows.evenly, rows.as_favourite, liked, off, log_share)

    def _favourite(self, x: torch.Tensor) -> torch.Tensor:
        """Draw (U,) a favourite from its prior."""
        topic = torch.multinomial(torch.softmax(x, 1), 1, generator=self._random).squeeze(1)
        point = topic + torch.rand(len(x), generator=self._random, dtype=torch.float64)
        return self._by_topic[torch.searchsorted(self._passed, point).clamp(max=len(self._by_topic) - 1)]

    def _change_favourites(self) -> None:
        """Draw one favourite of each user anew, from the prior or from whom the user was shown."""
        rows, number = self._rows, len(self.y)
        share = torch.log_softmax(self.x, 1)
        turn = int(torch.randint(0, FAVOURITES, (), generator=self._random))
        old = self.favourites[:, turn]
        seen = self._first + (torch.rand(number, generator=self._random) * self._count).long()
        seen = rows.streamer[seen.clamp(max=len(rows.streamer) - 1)]
        at_hand = (torch.rand(number, generator=self._random) < 0.5) & (self._count > 0) & (self._within[seen] > 0)
        fresh = torch.where(at_hand, seen, self._favourite(self.x))
        users = torch.arange(number)

        def prior(streamer: torch.Tensor) -> torch.Tensor:
            return torch.exp(share[users, self._topic[streamer]]) * self._within[streamer]

        def proposal(streamer: torch.Tensor) -> torch.Tensor:
            times = self._total((rows.streamer == streamer[rows.user]).float(), rows.user, number)
            return prior(streamer) + times / self._count.clamp(min=1)

        was, now = ((rows.streamer == one[rows.user]).float() for one in (old, fresh))
        liked = self._liked - was + now
        ratio = self._done(liked=(liked > 0).float()) - self._done()
        if self._shown:
            off, log_share = self._off(), share[rows.user, rows.topic]
            ratio += torch.log(self._exposed(liked, off - self._away(old) + self._away(fresh), log_share)[1])
            ratio -= torch.log(self._exposed(self._liked, off, log_share)[1])
        ratio = self._total(ratio, rows.user, number)
        ratio += torch.log(prior(fresh) / prior(old)) + torch.log(proposal(old) / proposal(fresh))
        taken = self._accept(ratio)
        self.favourites[:, turn] = torch.where(taken, fresh, old)
        self._liked = torch.where(taken[rows.user], liked, self._liked)

    def _change_seconds(self) -> None:
        """Draw the second topics of streamers of whom no room on it was seen."""
        rows, number = self._rows, len(self.second)
        fresh = (self._topic + torch.randint(1, T, (number,), generator=self._random)) % T
        fresh = torch.where(self._told, self.second, fresh)
        changed = self._affinities(self.x, fresh[rows.streamer])
        ratio = self._total(self._done(affinity=changed) - self._done(), rows.streamer, number)
        taken = self._accept(ratio)
        self.second = torch.where(taken, fresh, self.second)
        self._affinity = torch.where(taken[rows.streamer], changed, self._affinity)


class Prior:
    """Of an interest above its least value: y = (sqrt(rho) g + sqrt(1 - rho) g') / sqrt(k), g and g' Gamma of shape k.

    With g + g' = r and g = r v, r is Gamma of shape 2k and v Beta(k, k): the density is a mean over v, by Gauss-Jacobi.
    """

    FROM, STEP, POINTS = -21.0, 0.01, 2600  # of log y

    def __init__(self, transfer: float = 0.7) -> None:
        self._a, self._b = (math.sqrt(share / SPARSITY) for share in (transfer, 1 - transfer))
        self.low = -SPARSITY * (self._a + self._b)
        nodes, weights = roots_jacobi(200, SPARSITY - 1, SPARSITY - 1)
        share = (nodes + 1) / 2
        scale = self._a * share + self._b * (1 - share)
        log_y = self.FROM + self.STEP * np.arange(self.POINTS)
        shape = 2 * SPARSITY
        log_r = log_y[:, None] - np.log(scale)
        density = np.exp(shape * log_r - np.exp(log_r) - gammaln(shape))  # of log y
        self._table = torch.from_numpy(np.log(np.maximum(density @ (weights / weights.sum()), 1e-300))).float()

    def log_density(self, y: torch.Tensor) -> torch.Tensor:
        """Return the log-density of log y."""
        point = ((torch.log(y) - self.FROM) / self.STEP).clamp(0, self.POINTS - 1.001)
        left = point.long()
        return torch.lerp(self._table[left], self._table[left + 1], point - left)

    def draw(self, size: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
        """Draw y."""
        shape = torch.full((2, *size), SPARSITY)
        first, second = torch._standard_gamma(shape, generator=random)
        return (self._a * first + self._b * second).clamp(min=1e-9)


def logits(
    given: dict[str, torch.Tensor], bias: torch.Tensor, patience: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a click, and of staying after one."""

    def of(weights: dict[str, float], offset: torch.Tensor) -> torch.Tensor:
        return sum((weights[name] * value for name, value in given.items()), weights["intercept"] + offset)

    return of(CLICK, bias), of(STAY, patience)


def log_done(click: torch.Tensor, stay: torch.Tensor, clicked: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood of clicks, and of the watch time of those that came up."""
    watched = torch.log((1 - stays) + torch.sigmoid(stay) * (2 * stays - 1))
    return clicked * (click + watched) - torch.nn.functional.softplus(click)


def exposed(by_topic, evenly, as_favourite, liked, off, log_share) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chance that a room is shown by interest, and by any source, both over that of a draw by popularity."""
    even = 1 - live.POPULAR - live.PERSONAL - live.FOLLOWED
    personal = (live.PERSONAL + live.FOLLOWED * off / FAVOURITES) * torch.exp(log_share) * by_topic
    return personal, live.POPULAR + even * evenly + live.FOLLOWED / FAVOURITES * liked * as_favourite + personal


class Posterior:
    """Samples of a chain: what a day's rows are scored with.

    Args:
        chain: its state is sampled after every `thin` sweeps, once `burn` are over.
        samples, thin, burn: how many.
    """

    def __init__(self, chain: Chain, samples: int, thin: int, burn: int) -> None:
        for _ in range(burn):
            chain.sweep()
        kept: dict[str, list[torch.Tensor]] = {}
        for _ in range(samples):
            for _ in range(thin):
                chain.sweep()
            for name in ("x", "bias", "patience", "favourites", "quality", "second"):
                kept.setdefault(name, []).append(getattr(chain, name).clone())
        self.of = {name: torch.stack(parts) for name, parts in kept.items()}
        self._whole = torch.logsumexp(self.of["x"], 2)
        self.chain = chain

    def score(self, rows: Rows, on_air: torch.Tensor, shown: bool) -> torch.Tensor:
        """Return (n,) the chance of clicks, given the samples' days and a user's rows before each one."""
        of, samples = self.of, len(self._whole)
        weight = torch.zeros(samples, self._whole.shape[1])
        found = torch.empty(len(rows.user))
        count = torch.bincount(rows.user, minlength=self._whole.shape[1])
        turn = torch.arange(len(rows.user)) - (torch.cumsum(count, 0) - count)[rows.user]
        for now in range(int(turn.max()) + 1):
            at = torch.nonzero(turn == now).squeeze(1)
            row = rows.where(at)
            x, favourites = of["x"][:, row.user], of["favourites"][:, row.user]  # (samples, m, topics), (samples, m, 4)
            draws = torch.arange(samples)[:, None]
            second = of["second"][:, row.streamer]
            own = x[:, torch.arange(len(at)), row.topic]
            liked = (favourites == row.streamer[None, :, None]).float().sum(2)
            given = {
                "interest": FIRST * own + SECOND * x[draws, torch.arange(len(at))[None], second],
                "quality": of["quality"][:, row.streamer],
                "burst": row.burst[None],
                "favourite": (liked > 0).float(),
            }
            click, stay = logits(given, of["bias"][:, row.user], of["patience"][:, row.user])
            if shown:
                off = (~on_air[favourites, row.slot[None, :, None]]).float().sum(2)
                told = (row.by_topic[None], row.evenly[None], row.as_favourite[None])
                weight[:, row.user] += torch.log(exposed(*told, liked, off, own - self._whole[:, row.user])[1])
            found[at] = (torch.softmax(weight[:, row.user], 0) * torch.sigmoid(click)).sum(0)
            weight[:, row.user] += log_done(click, stay, row.click[None], row.stays[None])
        return found
