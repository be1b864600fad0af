"""How a stream is followed between two nights."""

from typing import Literal

from pydantic import Field

from livetrain.configs.schema.section import Section
from livetrain.configs.values import Duration, Share, Text


class Follow(Section):
    """What `livetrain follow` learns from, and what it does where it falls behind."""

    path: Text = Field(description="folder or URI that `livetrain stream` writes minutes to")
    shed_after: Duration | None = Field(
        None,
        description="how far behind the newest closed minute the training may fall, in event time, as 60m: older "
        "minutes are left out and counted; by default none ever is",
    )
    tolerance: Share = Field(
        0.01,
        description="of AUC, log loss or the logarithm of PCOC: a change that is smaller never raises an alarm",
    )
    handover: Literal["beside", "restart"] = Field(
        "beside",
        description="a new night's model catches up beside the old one, which goes on being published and takes the "
        "tables' memory a second time; or at once in its place",
    )
