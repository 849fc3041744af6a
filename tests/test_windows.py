"""Windows cut from series: gaps, duplicates, time zones, summer time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly.errors import DataError, ParameterError
from anomaly.windows import cut, history_groups, read_windows


def hours(n=24 * 9, start="2024-01-01", tz=None):
    index = pd.date_range(start, periods=n, freq="h", tz=tz)
    return pd.Series(np.arange(n, dtype=float), index)


def test_windows_equal_slices_of_the_series():
    series = hours()
    frame = cut(series, window=12)
    values = series.to_numpy()
    assert list(frame.columns[[0, 24, 25, 49, 50, 62]]) == [
        "c-12",
        "c12",
        "b-12",
        "b12",
        "a-12",
        "a0",
    ]
    for time, row in frame.iterrows():
        i = series.index.get_loc(time)
        wanted = [values[i - 168 - 12 : i - 168 + 13], values[i - 24 - 12 : i - 24 + 13]]
        np.testing.assert_array_equal(row, np.concatenate([*wanted, values[i - 12 : i + 1]]))
    assert frame.index[0] == series.index[180]
    assert frame.index[-1] == series.index[-1]


def test_gaps_are_missing_values_and_untested():
    series = hours().drop(hours().index[[40, 190]])
    frame = cut(series, window=12)
    assert hours().index[190] not in frame.index
    row = frame.loc[hours().index[200]]
    assert np.isnan(row["a-10"])
    assert np.isnan(row).sum() == 2  # the two gaps, one in A and one in C
    assert not np.isnan(frame["a0"]).any()


def test_order_and_duplicates():
    series = hours()
    mixed = pd.concat([series, series.iloc[[200]] + 10]).sample(frac=1, random_state=0)
    time = series.index[200]
    assert cut(mixed, 12).loc[time, "a0"] == 205
    assert cut(mixed.sort_values(), 12, duplicates="first").loc[time, "a0"] == 200
    assert cut(mixed.sort_values(), 12, duplicates="last").loc[time, "a0"] == 210
    with pytest.raises(DataError, match="several values at 2024-01-09 08:00:00"):
        cut(mixed, 12, duplicates="error")


def test_times_off_the_grid_are_snapped():
    series = hours()
    index = series.index + pd.to_timedelta(np.tile([0, 20, -20], 72), unit="s")
    frame = cut(pd.Series(series.to_numpy(), index), 12, step="1h")
    np.testing.assert_array_equal(frame, cut(series, 12))


def test_local_days_follow_the_clock_over_summer_time():
    series = hours(24 * 10, "2024-03-25", "Europe/Berlin")  # the clock jumps on 31 March
    time = pd.Timestamp("2024-03-31 12:00", tz="Europe/Berlin")
    clock, elapsed = cut(series, 10), cut(series, 10, calendar="elapsed")
    time = pd.Timestamp("2024-04-02 12:00", tz="Europe/Berlin")
    assert clock.loc[time, "c0"] == series[pd.Timestamp("2024-03-26 12:00", tz="Europe/Berlin")]
    assert elapsed.loc[time, "c0"] == series[pd.Timestamp("2024-03-26 11:00", tz="Europe/Berlin")]
    assert clock.loc[time, "b0"] == elapsed.loc[time, "b0"]


def test_skipped_and_repeated_local_times_have_a_place():
    series = hours(24 * 21, "2024-03-18", "Europe/Berlin")
    time = pd.Timestamp("2024-04-01 02:00", tz="Europe/Berlin")  # 02:00 is skipped the day before
    assert cut(series, 10).loc[time, "b0"] == series[time - pd.Timedelta("23h")]
    series = hours(24 * 21, "2024-10-15", "Europe/Berlin")
    time = pd.Timestamp("2024-10-28 02:00", tz="Europe/Berlin")  # 02:00 came twice the day before
    assert cut(series, 10).loc[time, "b0"] == series[time - pd.Timedelta("25h")]


def test_points_are_chosen_or_refused():
    series = hours()
    times = series.index[[190, 200]]
    assert list(cut(series, 12, points=times).index) == list(times)
    with pytest.raises(DataError, match="2024-01-01 05:00:00 has no full window"):
        cut(series, 12, points=series.index[[5]])
    with pytest.raises(DataError, match="both have a time zone"):
        cut(series, 12, points=times.tz_localize("UTC"))


def test_other_days_and_weeks():
    frame = cut(hours(), 10, day="6h", week="12h")
    row = frame.iloc[0]
    assert (row["a0"] - row["b0"], row["a0"] - row["c0"]) == (6, 12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"window": 9}, "window must be 10 to 100000, got 9"),
        ({"duplicates": "max"}, "duplicates must be mean, first, last or error"),
        ({"calendar": "lunar"}, "calendar must be clock or elapsed"),
        ({"day": "7D", "week": "1D"}, "week must be longer than day"),
        ({"step": "0s"}, "step must be above 0"),
    ],
)
def test_bad_parameters_are_named(arguments, text):
    with pytest.raises(ParameterError, match=text):
        cut(hours(), **{"window": 12, **arguments})


def test_what_is_no_series_is_refused():
    for series in ([1, 2], pd.Series([1.0, 2.0]), hours(1)):
        with pytest.raises(DataError, match="series must"):
            cut(series, 12)
    with pytest.raises(DataError, match="name a longer step"):
        cut(hours(), 12, step="1us")


def test_windows_cut_side_by_side_are_one_group():
    rng = np.random.default_rng(0)
    series = [pd.Series(rng.normal(size=24 * 9), hours().index) for _ in range(3)]
    X = np.vstack([cut(one, 12).to_numpy()[:5] for one in series])
    assert history_groups(X).tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_csv_faults_are_named(tmp_path):
    path = tmp_path / "w.csv"
    full, short = ",".join("1" * 21), ",".join("1" * 11)

    def read(text, **arguments):
        path.write_text(text)
        return read_windows(path, **arguments)

    head = "data_c,data_b,data_a,label\n"
    X, y = read(f'{head}"{full}","{full}","{short}",0\n"{full}","{full}","{short}",1\n')
    assert X.shape == (2, 53)
    assert y.tolist() == [False, True]
    with pytest.raises(DataError, match="row 2: data_a: could not convert"):
        read(f'{head}"{full}","{full}","1,x",0\n')
    with pytest.raises(DataError, match="hold 21, 21 and 10 numbers"):
        read(f'{head}"{full}","{full}","{short[2:]}",0\n')
    with pytest.raises(DataError, match="which label marks anomalies"):
        read(f'{head}"{full}","{full}","{short}",a\n')
    with pytest.raises(DataError, match="no label 'b'"):
        read(f'{head}"{full}","{full}","{short}",a\n', anomaly="b")
    with pytest.raises(DataError, match="no windows"):
        read(head)
    for damaged in ("", "a,b\n1,2,3\n1\n1,2,3,4,5\n"):
        with pytest.raises(DataError, match=r"w\.csv: no CSV file of windows"):
            read(damaged)
    path.write_bytes(b"\xff\xfe\x00,\n")
    with pytest.raises(DataError, match=r"w\.csv: no CSV file of windows"):
        read_windows(path)


def test_times_without_a_common_distance_want_a_step():
    series = hours()
    late = np.random.default_rng(0).integers(0, 600, len(series))
    late[0] = 0
    series.index += pd.to_timedelta(late, "s")
    with pytest.raises(DataError, match=r"no distance between points is common.*name the step"):
        cut(series, 12)
    np.testing.assert_array_equal(cut(series, 12, step="1h"), cut(hours(), 12))
