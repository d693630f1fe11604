"""Secrets of addresses, wherever they stand, and nothing else."""

from __future__ import annotations

import pytest

from cliptex_common.errors import hide_secrets, redact, remember_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:p@ss/w@host/db", "postgresql+psycopg://me:***@host/db"),
        ("at http://me:secret@host:5000/x.", "at http://***@host:5000/x."),
        ("https://TOKEN@host and http://a:b@c", "https://***@host and http://***@c"),
        (
            "postgresql://host/db?user=me&password=se%40cret&ssl=1",
            "postgresql://host/db?user=me&password=***&ssl=1",
        ),
        (
            "x://h?sslpassword=a&access_token=b;api-key=c",
            "x://h?sslpassword=***&access_token=***;api-key=***",
        ),
        ('{"uri": "http://me:secret@host"}', '{"uri": "http://***@host"}'),
    ],
)
def test_secrets_are_hidden(text, shown):
    assert hide_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "hf://datasets/me/name@main/x",
        "postgresql://me@host/db",
        "i2t_R@1 of clip@abc at 12:30",
        "http://host/path@version",
        "--set token=1 a=b",
    ],
)
def test_the_rest_stays(text):
    assert hide_secrets(text) == text


def test_parts_that_a_library_quotes_are_hidden(monkeypatch):
    """But no word that is no secret alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-en-tok")
    for uri in (
        "http://bob:hunter%402@host/x",
        "alice:opensesame@host",
        "https://abcdef123@host",
        "pg://h?password=zxcvbn",
        "postgresql://mlflow:mlflow@host/mlflow",
        "postgresql://me:db@host/db",
    ):
        remember_secrets(uri)
    text = "mlflow keeps its db, bob:hunter@2 hunter%402 opensesame abcdef123 zxcvbn tok-en-tok"
    assert redact(text) == "mlflow keeps its db, *** *** *** *** *** ***"
