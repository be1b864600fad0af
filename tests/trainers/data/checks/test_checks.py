"""Every finding: a dataset that brings it about, beside the honest one that does not."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livetrain.configs.errors import BadInput
from livetrain.trainers.data.checks import whole
from livetrain.trainers.data.checks.findings import Verdict, share
from livetrain.trainers.data.write import layout
from tests.trainers.data.checks.prepared import ROLES, day_name, day_start, findings, only, write

CHECKS = {"schema", "roles", "ranges", "duplicates", "time order", "label rates", "unseen ids", "lengths", "leakage"}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return write(tmp_path_factory.mktemp("honest"))


@pytest.mark.parametrize("splits", [False, True])
def test_nothing_is_wrong_with_an_honest_dataset(tmp_path, splits):
    checked = whole.check(write(tmp_path, splits=splits))
    assert [finding for finding in checked.findings if finding.verdict != Verdict.ok] == []
    assert checked.worst == Verdict.ok
    checks = {
        "schema",
        "roles",
        "ranges",
        "duplicates",
        "time order",
        "label rates",
        "unseen ids",
        "lengths",
        "leakage",
    }
    assert {finding.check for finding in checked.findings} == checks


def test_a_file_with_another_type_is_named(tmp_path):
    def spoil(number, rows):
        if number == 2:
            rows["viewers"] = rows["viewers"].astype(np.float64)

    found = only(write(tmp_path, spoil=spoil), "schema")
    assert (found.subject, found.verdict) == ("viewers", Verdict.wrong)
    assert f"double in {tmp_path}/date={day_name(2)}/part-2.parquet, float elsewhere" in found.text


def test_a_file_without_a_column_is_named_and_the_other_checks_still_run(tmp_path):
    checked = whole.check(write(tmp_path, spoil=lambda number, rows: rows.pop("streamer") if number == 0 else None))
    wrong = {(finding.check, finding.subject) for finding in checked.findings if finding.verdict == Verdict.wrong}
    assert wrong == {("schema", "streamer"), ("roles", "streamer")}
    assert any(finding.check == "leakage" for finding in checked.findings)


def test_columns_that_the_manifest_promises_are_compared(tmp_path):
    write(tmp_path)
    columns = {"user": "int64", "viewers": "double", "gone": "int64"}
    (tmp_path / "dataset.json").write_text(json.dumps({"roles": ROLES, "columns": columns}))
    found = {finding.subject: finding for finding in findings(tmp_path, "schema")}
    assert {finding.verdict for finding in found.values()} == {Verdict.wrong}
    assert set(found) == {"viewers", "gone"}
    assert "float in the files, double in dataset.json" in found["viewers"].text


@pytest.mark.parametrize(
    ("role", "column", "words"), [("dense", "gone", "no file has it"), ("ids", "viewers", "it is float")]
)
def test_a_role_that_no_column_can_play_is_wrong(tmp_path, role, column, words):
    found = only(write(tmp_path, roles=ROLES | {role: [column]}), "roles")
    assert (found.subject, found.verdict) == (column, Verdict.wrong)
    assert words in found.text


def test_a_role_may_be_written_as_one_column_or_as_a_list(tmp_path):
    given = ROLES | {"labels": "click", "dense": "viewers", "time": ["timestamp"]}
    roles = whole.check(write(tmp_path, roles=given)).dataset.roles
    assert (roles.labels, roles.dense, roles.time) == (["click"], ["viewers"], "timestamp")


def test_an_empty_column_does_not_play_the_role_of_one_whose_name_holds_its_own(tmp_path):
    def spoil(number, rows):
        rows["time"] = pa.nulls(1500)

    dataset = whole.check(write(tmp_path, spoil=spoil, roles=ROLES | {"dense": ["viewers", "time"]})).dataset
    assert dataset.schema.field("time").type == pa.float64()


def test_without_roles_they_are_inferred_and_that_is_said(tmp_path):
    checked = whole.check(write(tmp_path, roles=None))
    found = next(finding for finding in checked.findings if finding.check == "roles")
    assert (found.verdict, found.text) == (
        Verdict.look,
        "dataset.json has no roles; by type and name, labels: click",
    )
    roles = checked.dataset.roles
    assert (roles.time, roles.group, roles.item) == ("timestamp", "user", "room")
    assert (roles.ids, roles.dense) == (["user", "streamer", "room"], ["watch_time", "viewers"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_training_cannot_hold_are_wrong(tmp_path, value):
    def spoil(number, rows):
        rows["viewers"] = rows["viewers"].astype(np.float64)
        if number == 1:
            rows["viewers"][[3, 8]] = value
        rows["viewers"] = pa.array(rows["viewers"], from_pandas=False)

    found = only(write(tmp_path, spoil=spoil), "ranges", "viewers")
    assert found.verdict == Verdict.wrong
    assert found.text.startswith("2 rows hold NaN")
    summary = next(summary for summary in whole.check(tmp_path).summaries if summary.column == "viewers")
    assert (summary.bad, summary.most < 200) == (2, True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda n, rows: rows.update(viewers=pa.nulls(1500, pa.float32())), "null in every row"),
        (lambda n, rows: rows.update(viewers=_with_nulls(rows, 0.6)), "null in 60.0 % of rows"),
        (lambda n, rows: rows.update(viewers=_with_nulls(rows, 0.3 * (n == 3))), f"null in 30.0 % of {day_name(3)}"),
        (lambda n, rows: rows.update(viewers=np.ones(1500, np.float32)), "always 1"),
        (lambda n, rows: rows["viewers"].__setitem__(0, 1e6 if n == 1 else 100), "deviations from its mean"),
    ],
    ids=["empty", "mostly null", "null on one day", "constant", "far"],
)
def test_odd_values_are_worth_a_look(tmp_path, spoil, words):
    (found, *_) = findings(write(tmp_path, days=8, spoil=spoil), "ranges", "viewers")
    assert found.verdict == Verdict.look
    assert words in found.text


def _with_nulls(rows, part):
    return pa.array(rows["viewers"], mask=np.arange(len(rows["viewers"])) < part * len(rows["viewers"]))


def test_the_summary_of_a_column_is_numpys(honest):
    checked = whole.check(honest)
    values = np.concatenate([pq.read_table(path)["viewers"].to_numpy() for path in honest.glob("*/*.parquet")])
    found = next(summary for summary in checked.summaries if summary.column == "viewers")
    exact = [values.min(), values.max(), values.mean(dtype=float), values.std(dtype=float)]
    assert [found.least, found.most, found.mean, found.std] == pytest.approx(exact, rel=1e-6)
    learned = np.concatenate(
        [pq.read_table(path)["viewers"].to_numpy() for path in sorted(honest.glob("*/*.parquet"))[:3]]
    )
    assert found.quantiles == pytest.approx(np.quantile(learned, [0.01, 0.5, 0.99], method="lower"))


def test_a_row_that_repeats_a_key_is_worth_a_look(tmp_path):
    def spoil(number, rows):
        for name in ("user", "room", "timestamp"):
            rows[name][[5, 6]] = rows[name][4]

    found = only(write(tmp_path, spoil=spoil), "duplicates")
    assert found.verdict == Verdict.look
    assert found.text.startswith(f"8 rows ({share(8 / 6000)})")


def test_a_key_that_is_learned_from_and_measured_on_is_wrong(tmp_path):
    write(tmp_path, splits=True)
    shutil.copy(tmp_path / "train/part-0.parquet", tmp_path / "test/part-9.parquet")
    found = only(tmp_path, "duplicates")
    assert found.verdict == Verdict.wrong
    assert found.text.startswith("1,500 keys stand in two parts")


def test_without_a_time_column_duplicates_and_order_are_not_called_fine(tmp_path):
    write(tmp_path, roles={role: columns for role, columns in ROLES.items() if role != "time"})
    for check in ("duplicates", "time order"):
        found = only(tmp_path, check)
        assert (found.verdict, found.text.startswith("not checked: no time")) == (Verdict.look, True)


def test_a_split_that_begins_before_the_one_before_ends_is_wrong(tmp_path):
    def spoil(number, rows):
        if number == 3:
            rows["timestamp"][:10] = day_start(0)

    found = only(write(tmp_path, spoil=spoil, splits=True), "time order", "test")
    assert found.verdict == Verdict.wrong
    assert found.text.startswith("10 rows are no later than the last of valid")


@pytest.mark.parametrize(("rows", "verdict"), [(40, Verdict.look), (100, Verdict.wrong)])
def test_rows_outside_the_day_of_their_partition_are_counted(tmp_path, rows, verdict):
    def spoil(number, columns):
        columns["timestamp"] -= 5 * 3_600_000  # midnight of another time zone
        if number == 3:
            columns["timestamp"][:rows] += 2 * 86_400_000

    found = only(write(tmp_path, spoil=spoil), "time order")
    assert (found.subject, found.verdict) == ("days", verdict)
    assert found.text.startswith(f"{rows} rows ({share(rows / 6000)}) lie outside")


def test_the_manifests_time_zone_says_where_a_day_begins(tmp_path):
    write(tmp_path, spoil=lambda number, rows: rows["timestamp"].__isub__(8 * 3_600_000))
    (tmp_path / "dataset.json").write_text(json.dumps({"roles": ROLES, "utc_offset_s": 8 * 3600}))
    assert only(tmp_path, "time order").verdict == Verdict.ok
    (tmp_path / "dataset.json").write_text(json.dumps({"roles": ROLES, "utc_offset_s": 0}))
    assert only(tmp_path, "time order").verdict == Verdict.wrong


def test_a_missing_day_is_worth_a_look(tmp_path):
    write(tmp_path)
    shutil.rmtree(tmp_path / f"date={day_name(1)}")
    found = only(tmp_path, "time order")
    assert (found.subject, found.verdict) == (day_name(1), Verdict.look)


def test_a_part_without_rows_is_wrong(tmp_path):
    write(tmp_path)
    (tmp_path / f"date={day_name(4)}").mkdir()
    found = only(tmp_path, "rows")
    assert (found.subject, found.verdict) == (day_name(4), Verdict.wrong)


@pytest.mark.parametrize("splits", [False, True])
def test_a_day_whose_label_rate_is_off_is_worth_a_look(tmp_path, splits):
    def spoil(number, rows):
        if number == 2:
            rows["click"][:500] = 1

    checked = whole.check(write(tmp_path, days=5, spoil=spoil, splits=splits))
    found = next(f for f in checked.findings if (f.check, f.subject) == ("label rates", "click"))
    assert found.verdict == Verdict.look
    assert f"drifts on 1 of 5 days, most on {day_name(2)}" in found.text


def test_an_amount_drifts_by_its_mean(tmp_path):
    found = only(
        write(tmp_path, spoil=lambda number, rows: rows["watch_time"].__imul__(3 if number == 3 else 1)),
        "label rates",
        "watch_time",
    )
    assert (found.verdict, f"most on {day_name(3)}" in found.text) == (Verdict.look, True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda n, rows: rows["click"].__setitem__(0, 2), "4 rows hold something other than 0 and 1"),
        (lambda n, rows: rows["click"].fill(0), "0 in every row to learn from"),
        (lambda n, rows: rows.update(click=pa.nulls(1500, pa.int8())), "null in every row to learn from"),
        (lambda n, rows: rows["click"].fill(0) if n == 3 else None, f"always 0 on {day_name(3)}"),
    ],
    ids=["two", "constant", "unknown", "one day without"],
)
def test_labels_that_teach_nothing_or_wrong_things(tmp_path, spoil, words):
    found = only(write(tmp_path, spoil=spoil), "label rates", "click")
    assert found.verdict == Verdict.wrong
    assert words in found.text


@pytest.mark.parametrize(("part", "verdict"), [(0.005, Verdict.ok), (0.4, Verdict.look)])
def test_labels_not_known_yet_are_counted_by_day(tmp_path, part, verdict):
    def spoil(number, rows):
        if number == 3:
            rows["click"] = pa.array(rows["click"], mask=np.arange(1500) >= (1 - part) * 1500)

    found = only(write(tmp_path, spoil=spoil), "unknown labels")
    assert (found.subject, found.verdict) == ("click", verdict)
    assert f"most on {day_name(3)}, {share(np.floor(part * 1500) / 1500)}" in found.text


def test_ids_that_are_new_on_the_last_day_are_worth_a_look(tmp_path):
    def spoil(number, rows):
        rows["room"] += 100_000 * number

    found = only(write(tmp_path, spoil=spoil), "unseen ids", "room")
    assert found.verdict == Verdict.look
    assert found.text.startswith(f"100.0 % of the rows of {day_name(3)}")


@pytest.mark.parametrize(
    ("spoil", "verdict", "words"),
    [
        (lambda n, rows: rows.update(live_action=_shorter(rows["live_action"])), Verdict.wrong, "not as long as"),
        (lambda n, rows: rows.update(live_action=_cut(rows["live_action"], n)), Verdict.look, "mean length"),
        (lambda n, rows: rows.update(live_action=_cut(rows["live_action"], 3)), Verdict.look, "empty in every"),
    ],
    ids=["not parallel", "short on one day", "empty"],
)
def test_odd_lengths(tmp_path, spoil, verdict, words):
    found = findings(write(tmp_path, spoil=spoil), "lengths", "live_action")[-1 if verdict == Verdict.wrong else 0]
    assert found.verdict == verdict
    assert words in found.text


def _shorter(column):
    """One list in ten loses its newest element."""
    return pa.array([x[:-1] if place % 10 == 0 else x for place, x in enumerate(column.to_pylist())], column.type)


def _cut(column, number):
    return pa.array([[] if number == 3 else x for x in column.to_pylist()], column.type)


def test_a_folder_that_is_no_dataset_is_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="there is no such folder"):
        whole.check(tmp_path / "gone")
    with pytest.raises(BadInput, match="neither train/ nor date="):
        whole.check(tmp_path)
    (tmp_path / "date=soon").mkdir()
    with pytest.raises(BadInput, match="'date=soon' is no day"):
        whole.check(tmp_path)


def test_a_preparation_that_was_cut_short_is_not_checked(tmp_path):
    layout.begin(tmp_path)
    layout.write_split(tmp_path, "train", pa.schema([("user", pa.int64())]), [pa.table({"user": [1]})])
    with pytest.raises(BadInput, match="its preparation has not finished"):
        whole.check(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / f"date={day_name(0)}" / "part-9.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="part-9.parquet: not a complete Parquet file"):
        whole.check(tmp_path)


def test_the_same_dataset_gives_the_same_findings(honest):
    assert whole.check(honest).findings == whole.check(honest).findings


@pytest.mark.parametrize("roles", [ROLES, None])
def test_ids_may_be_strings(tmp_path, roles):
    """Named as ids or taken for them, they are counted, told apart and probed as others are."""

    def spell(number, rows):
        rows["user"] = pa.array(rows["user"].astype(str)).dictionary_encode()
        rows["streamer"] = pa.array(rows["streamer"].astype(str), pa.large_string())
        rows["room"] = pa.array([f"{number if number == 3 else ''} {room}" for room in rows["room"]])
        rows["live_streamer"] = rows["live_streamer"].cast(pa.list_(pa.string()))

    checked = whole.check(write(tmp_path, spoil=spell, roles=roles))
    assert {"user", "streamer", "room"} <= set(checked.dataset.roles.ids)
    assert "live_streamer" in checked.dataset.roles.sequences
    wrong = {finding.check for finding in checked.findings if finding.verdict == Verdict.wrong}
    assert wrong == (set() if roles else {"leakage"})  # unnamed, watch_time is no label but a number
    new = only(tmp_path, "unseen ids", "room")
    assert "100.0 % of the rows" in new.text
    assert {"user", "streamer", "live_streamer"} <= {probe.column for probe in checked.probes}
