"""Labels of 0 and 1 whose positives are to be found among all items."""

from torch import Tensor
from torch.nn import functional as F

from livetrain.modules.tasks.kind import Metric, Needs
from livetrain.modules.tasks.ranked import Ranked
from livetrain.modules.tasks.registry import register_task

AT = (10, 50, 100)  # lengths of the lists that are measured


@register_task("retrieval")
class Retrieval(Ranked):
    """A label of 0 or 1 whose positives are to be found among all items: softmax over the items of a batch.

    loss = -log sigmoid(z) = softplus(-z), of positives only,  prediction = the score itself

    In training z is the logit of the row's item against all others of the batch, s_i - log sum_{j != i} e^s_j: then
    sigmoid(z) is its softmax. The prediction ranks items and is no probability. What is found among all items
    trainers.evaluate.retrieval measures.
    """

    output = "score, by which items are ranked"
    towers = only_positives = True
    metrics = {
        **Ranked.metrics,
        **{f"recall_{k}": Metric(f"recall@{k}", 1, headline=k == AT[-1], needs=Needs.POSITIVE, least=0.0) for k in AT},
        **{f"ndcg_{k}": Metric(f"NDCG@{k}", 1, needs=Needs.POSITIVE, least=0.0) for k in AT},
        "items": Metric("items", shown=",.0f"),
        "queries": Metric("rows ranked", shown=",.0f"),
        "unlisted": Metric("of them with an item that is not listed", shown=",.0f"),
    }
    leading = f"recall_{AT[-1]}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, were its label 1; all of one shape."""
        return F.softplus(-logits)
