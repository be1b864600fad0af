"""What is wrong with a spec is one sentence: file, line, key, mend."""

import pytest

from livetrain.configs.errors import BadInput
from livetrain.configs.spec import Spec, load_spec
from livetrain.trainers.data.sources.table.prepare import prepare

SPEC = """\
log: {files: log.csv}
joins:
  items: {files: items.csv, key: sku, on: item}
time: {column: at, format: s}
user: user
columns:
  user: {type: id}
  item: {type: string}
  price: {type: number, column: items.price}
  vector: {type: vector, width: 2, separator: ' ', column: items.vector}
labels:
  click: clicked = '1'
counts: [user]
split: {by: random}
"""


def given(tmp_path, spec=SPEC):
    rows = "".join(f"{n % 5},s{n % 3},{1_700_000_000 + n},{n % 2}\n" for n in range(60))
    (tmp_path / "log.csv").write_text(f"user,item,at,clicked\n{rows}x,s1,1700000000,1\n1,s1,soon,0\n1,s9,1700000000\n")
    (tmp_path / "items.csv").write_text('sku,price,vector\ns0,"1,234.5",1 2\ns1,abc,1 x\ns1,7,3 4\n')
    path = tmp_path / "spec.yaml"
    path.write_text(spec)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("type: number", "type: numbre", r"spec.yaml, line 9: columns.price.type got 'numbre', wanted one of .*number"),
        ("counts: [user]", "count: [user]", r"line 13: unknown key count .*counts"),
        ("items.price", "items.prise", r"line 9: columns.price.column: DuckDB does not take it: .*prise"),
        ("clicked = '1'", "cliked = '1'", r"line 12: labels.click: DuckDB does not take it: .*cliked.*"),
        ("clicked = '1'", "clicked = = 1", r"line 12: labels.click: .* is no SQL expression \(syntax error"),
        ("clicked = '1'", "CAST(item AS INT) = 1", r"line 12: labels.click: DuckDB cannot compute it: .*'s0'"),
        ("key: sku", "key: skew", r"line 3: joins.items.key: the files have no column 'skew'"),
        ("log.csv", "logs.csv", r"line 1: log.files: there is no file .*logs.csv"),
        ("counts: [user]", "counts: [usr]", r"counts: no column is called 'usr' \(did you mean 'user'"),
        ("counts: [user]", "counts: [price]", r"counts: column 'price' is of type number"),
        ("{by: random}", "{by: random, valid: 0.6, test: 0.5}", r"line 14: split: valid: together with test"),
        ("width: 2, ", "", r"line 10: columns.vector: width: a vector needs"),
        ("format: s", "format: '%d/%m'", r"line 4: time.format: no row is left"),
        ("format: s", "format: s, zone: Mars", r"line 4: time.zone: there is no time zone 'Mars'"),
        ("time: {column: at, format: s}\n", "", r"counts: what was earlier needs a time"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, words):
    assert old in SPEC
    with pytest.raises(BadInput, match=words):
        prepare(load_spec(given(tmp_path, SPEC.replace(old, new)), Spec), tmp_path / "out")


def test_what_is_dropped_and_missing_is_counted(tmp_path):
    spec = load_spec(given(tmp_path), Spec)
    made = prepare(spec, tmp_path / "out")
    counts = made["report"]["raw"] | made["report"]["rows"]
    assert counts["rows in the files"] == 62
    assert counts["lines that do not parse: dropped"] == 1
    assert counts["rows without a time: dropped"] == 1
    assert counts["rows without user: dropped"] == 1
    assert counts["rows kept"] == 60
    assert counts["joins.items: rows whose item it does not have"] == 20
    assert counts["price: null because the value is no number"] == 21
    assert counts["vector: null because the value is no vector"] == 21
    assert sum(part["rows"] for part in made["splits"].values()) == 60
    assert prepare(spec, tmp_path / "out") == made  # it is left as it is
    with pytest.raises(BadInput, match="another spec"):
        prepare(load_spec(given(tmp_path, SPEC.replace("random", "time")), Spec), tmp_path / "out")
    (tmp_path / "log.csv").write_text((tmp_path / "log.csv").read_text() + "1,s0,1700000000,1\n")
    with pytest.raises(BadInput, match="from other files"):
        prepare(spec, tmp_path / "out")
