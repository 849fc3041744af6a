"""Anomalies, samples, training tasks, promotions and results."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_REAL: sa.Double[float] = sa.Double()
_EXACT: dict[str, Any] = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def _names() -> list[sa.Column[str]]:
    return [
        sa.Column(name, sa.String(255), nullable=False)
        for name in ("view_id", "view_name", "attr_id", "attr_name")
    ]


def _window() -> list[sa.Column[str]]:
    return [sa.Column(name, _LONG, nullable=False) for name in ("data_c", "data_b", "data_a")]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "anomalies",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        *_names(),
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        *_window(),
        sa.Column("p", _REAL, nullable=False),
        sa.Column("explanation", sa.String(500), nullable=False),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("stream_key", sa.String(80)),
        sa.Column("seq", sa.BigInteger()),
        sa.UniqueConstraint("stream_key", "seq", name="anomalies_once"),
        **_EXACT,
    )
    op.create_index("anomalies_time", "anomalies", ["time"])
    op.create_table(
        "samples",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        *_names(),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("train_or_test", sa.String(16), nullable=False),
        sa.Column("positive_or_negative", sa.String(16), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.Column("data_time", sa.BigInteger(), nullable=False),
        *_window(),
        sa.Column("anomaly_id", sa.BigInteger()),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        **_EXACT,
    )
    op.create_index("samples_time", "samples", ["data_time"])
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("progress", _REAL, nullable=False),
        sa.Column("detail", sa.String(500), nullable=False),
        sa.Column("source", sa.String(500), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.Column("selection", _LONG, nullable=False),
        sa.Column("positive", sa.Integer(), nullable=False),
        sa.Column("negative", sa.Integer(), nullable=False),
        sa.Column("begin_time", sa.BigInteger(), nullable=False),
        sa.Column("end_time", sa.BigInteger(), nullable=False),
        **_EXACT,
    )
    op.create_table(
        "promotions",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("task_id", sa.String(64), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        **_EXACT,
    )
    op.create_table(
        "results",
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("stream", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("timestamp", sa.String(64), nullable=False),
        sa.Column("instant", _REAL, nullable=False),
        sa.Column("value", _REAL),
        sa.Column("prediction", _REAL),
        sa.Column("fields", _LONG),
        sa.Column("score", _REAL, nullable=False),
        sa.Column("likelihood", _REAL, nullable=False),
        sa.Column("is_anomaly", sa.Boolean(), nullable=False),
        sa.Column("explanation", sa.String(500), nullable=False),
        sa.Column("written", _REAL, nullable=False),
        **_EXACT,
    )
    op.create_index("results_written", "results", ["written"])


def downgrade() -> None:
    """Drop them."""
    for table in ("results", "promotions", "tasks", "samples", "anomalies"):
        op.drop_table(table)
