"""What picture controls say stands in the report, and nothing where there are none."""

from __future__ import annotations

from html_page import Page
from sample_metrics import sample_metrics

from vlmend.report.render import render_html

TITLE = "Is it the picture or what it says?"


def test_controls_have_a_table_with_their_sentences() -> None:
    metrics = sample_metrics()
    assert TITLE not in render_html(metrics)
    metrics["controls"] = [
        {
            "suite": "organism/icon",
            "exit": None,
            "judge": "organism",
            "arm": "blank image",
            "control": "blank",
            "n": 90,
            "asr_image": 0.75,
            "asr_control": rate,
            "difference": -0.625,
            "low": None if rate is None else -0.7,
            "high": None if rate is None else -0.5,
            "p_holm": 0.001,
            "reading": reading,
        }
        for rate, reading in ((0.125, "what the picture shows <matters>"), (None, "withheld"))
    ]
    html = render_html(metrics)
    Page(html)
    assert TITLE in html
    assert "75.0 \u2192 12.5" in html
    assert "what the picture shows &lt;matters&gt;" in html
    assert html.count("(change \u221270.0 to \u221250.0)") == 1
    for row in metrics["controls"]:  # of an older version
        del row["difference"], row["low"], row["high"]
    assert "(change" not in render_html(metrics)
