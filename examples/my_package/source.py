"""An event log of one's own, for ``livetrain data events shop --plugin my_package.source --raw ... --out ...``.

impressions.csv: user, product, seller, time (ms), price, bought (0 or 1)
"""

from livetrain.trainers.data.sources.events.model import CLICK, EXPOSURE, Adapter, Attributes, Label, RawFile, Sequence
from livetrain.trainers.data.sources.events.sources import register_source

_DAY = "day_of(time)"

register_source(
    Adapter(
        name="shop",
        domain="video",
        item="product",
        author="seller",
        utc_offset_s=0,
        files={
            "impressions": RawFile(
                names=("impressions.csv",),
                columns={
                    **dict.fromkeys(("user", "product", "seller", "time", "bought"), "BIGINT"),
                    "price": "DOUBLE",
                },
                checks={"price is negative": "price < 0"},
            ),
            "products": RawFile(
                names=("products.csv",), columns={"product": "BIGINT", "category": "VARCHAR"}, required=False
            ),
        },
        exposures=f"""
            SELECT user, product AS item, seller AS author, time, {_DAY} AS day, price FROM impressions""",
        context={"price": "dense"},
        actions=f"""
            SELECT user, 'video' AS domain, product AS item, seller AS author, time, {CLICK} AS kind,
                   NULL::DOUBLE AS value, time AS session, {_DAY} AS day
            FROM impressions WHERE bought = 1""",
        attributes={
            "product": Attributes(key="item", select="SELECT product AS id, category FROM products", ids=("category",))
        },
        labels={"bought": Label(CLICK)},
        sequences={"seen": Sequence("video", EXPOSURE, item="product", author="seller")},
        statistics={"user": "user", "product": "item"},
    )
)
