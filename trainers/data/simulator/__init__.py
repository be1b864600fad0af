"""A simulated world of live streaming whose truth is known.

It is written in the form of KuaiLive's and KuaiLive-M3's files, with the true probability of every label beside them:
the best AUC that any model can reach is then a figure (`oracle`), and a model's distance to it another. All constants
stand beside the code that uses them; `Settings` holds the few dials.

**Interests.** For user u and each of 12 topics, with s, s' shared by both domains, l, l' of a domain's own, all of
variance 1 and with a heavy right tail (a standardised Gamma of shape 0.4: few topics matter to a user):

    click_u = sqrt(rho) s + sqrt(1 - rho) l                          rho = transfer
    value_u = k click_u + sqrt(1 - k^2) (sqrt(rho) s' + sqrt(1 - rho) l')      k = 1 - 2 conflict

once for live rooms and once for short videos. So corr(click, value) = 1 - 2 conflict, and the same interest correlates
with transfer between the domains. A streamer has a topic and a second one; a room is on the first (85 %) or the second.
A user's affinity to a room is A = (click_u[topic] + 0.4 click_u[second]) / sqrt(1.16), and V the same of value_u.

**Supply.** A streamer's weight is rank^-0.95 exp(x_d), with x_d an autoregression over days (drift); each day 0.8 % new
streamers join and rise. A streamer's rooms start as a Poisson process in a clock on which all hours are equally busy;
lengths are lognormal. On day d videos are shown that were uploaded by then.

**Exposure.** Sittings are Poisson per user, with lognormal rates; a sitting shows Poisson numbers of rooms and videos,
both lognormal and drawn independently, so many users with few live exposures watch videos. 35 % of live exposures are
drawn by popularity, 30 % on a topic drawn from softmax(click_u), 15 % from the four streamers followed from
the start, 20 % evenly from all rooms on air. Only rooms that are on air during the whole 10-minute slot are shown.

**Friends** (`social` above 0). All users are paired six times over, evenly, so that only the tie itself tells who is a
friend. A share `social` of all live exposures, whichever way they would have come, leads to a streamer on air who is
among the eight that a friend visited last, drawn evenly from those of all friends before the slot. Who follows whom
(the four of the start, and follows of the log) and who are friends is told beside the log.

**What is known of new ones** (`content` above 0). A vector of 64 numbers per streamer, of whose squared length a share
`content` comes of topics, quality and charm (formula in `people`); and per user up to three topics, drawn from
softmax(click_u), as chosen when she registered.

**What a user does** at an exposure, with F = 1 for a streamer followed from the start, G = 1 for one whom a friend has
visited of late, Q and C a streamer's quality and charm, B = 1 while the room's burst lasts (a Markov chain),
H = log(1 + heat), E = min(excitement, 3) and a user's own offsets b; the weights are in `chances`:

    P(click)          = sigmoid(b + A + Q + B + F + G)                     each term with its weight
    P(stay | click)   = sigmoid(b' + A + Q + B + F + G)
    W | click         ~ lognormal "remain" if stay, lognormal "leave" if not, cut by the room's end
    P(effective view) = P(click) P(W >= 30 s | click)                      in closed form
    P(like)           = P(effective view) sigmoid(b'' + V + C + B + H + E + F)      comment and gift alike
    P(follow)         = P(effective view) sigmoid(b'' + A + C + B + E), 0 for one who follows already

Heat is a room's sum of earlier likes, comments and gifts, excitement a user's sum of earlier likes and comments in
rooms and likes of videos, each forgotten exponentially and updated at slot borders: actions bring further actions, in
rooms as in people. So rare actions come in bursts, and what a user did in either domain in the last hour tells of the
next gift.
The logits of like, comment and gift are balanced for the conflict dial: it moves interests, not rates.
Given the past up to the slot, all labels are independent draws from these probabilities, which is what the truth holds.
12 % of gifts come after the view, evenly until the room ends; nothing is recorded after the log's last day.

**Simplifications.** Views may overlap in time; slots quantise the feedback; interests do not drift; age, gender and
devices are noise.
"""

from livetrain.trainers.data.simulator.settings import Settings, count
from livetrain.trainers.data.simulator.simulation import simulate

__all__ = ["Settings", "count", "simulate"]
