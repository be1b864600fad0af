"""Words of columns' names, by what they suggest, in the order in which they count."""


def _words(text: str) -> list[str]:
    return text.split()


TIME = _words(  # when a row happened
    """
    timestamp ts time datetime eventtime when unix epoch date day created occurred logged at zeit datum
    fecha bestelldatum 时间 日期
    """
)
USER = _words(  # whose it is
    """
    user userid uid customer client member visitor viewer consumer shopper account buyer reader listener
    player subscriber person patient student guest passenger reviewer nutzer kunde usuario utilisateur
    cliente profile household device cookie session kundennr 用户 用户id
    """
)
ITEM = _words(  # what was shown
    """
    item itemid iid product sku article movie film video photo clip book isbn song track artist room
    stream live post creative ad listing restaurant hotel property recipe news doc document content asin
    goods poi venue place business game app job course offer coupon campaign show episode podcast anime
    title artikel artikelnr produkt producto produit streamer author page 商品 视频 主播 直播间
    """
)
OUTCOME = _words(  # what came of it, as two values
    """
    label target click clicked clicks purchase purchased buy bought convert converted conversion order
    ordered like liked follow followed share shared comment commented save saved cart carted booked
    booking watched finished completed finish complete install installed subscribe subscribed redeemed
    opened open response responded accepted accept success gift gifted effective engaged engagement
    interested attended read listened skipped reordered returned churn churned positive is_click
    is_buy replied applied visited visit skip long survived default y outcome gekauft geklickt
    retourniert comprado achat 点击 购买 点赞
    """
)
RATING = _words(  # what came of it, as a grade
    "rating ratings score stars star grade review_score overall vote note bewertung"
)
LATER = _words(  # what is known only afterwards
    """
    watch watched watchtime dwell dwelltime playtime listen listened spent stay revenue gmv reward
    profit payment paid
    """
)
AMOUNT = _words(  # numbers that are predicted where nothing else is
    """
    watch dwell playtime playing listen seconds minutes spent stay duration revenue hours sales demand
    value amount
    """
)
EVENT = _words(  # the column that says what kind of event a row is
    "event eventtype action behavior behaviour activity interaction type"
)
DONE = _words(  # kinds of events that are done, and not only seen
    """
    click clicked purchase purchased buy bought cart addtocart transaction order like fav favorite
    favourite follow share convert conversion save booking book checkout download install subscribe
    comment gift
    """
)
KEY = _words("id uuid guid key index idx row rowid number no nr unnamed")  # numbers of rows
WEIGHT = _words("weight sampleweight importance")  # weights of rows
EARLY = _words(  # dates of things, not of rows
    """
    birth birthday signup registered registration release released published joined first founded
    updated
    """
)
TRAIT = _words(  # two values that are no outcome
    """
    premium active verified mobile weekend holiday promo promoted sale discount new gender male female
    adult sponsored
    """
)
CODED = _words(  # whole numbers that name something, however many there are
    "id code zip zipcode postal category cat type class brand cluster region tag"
)
