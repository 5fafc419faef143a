"""What a panel of judges says stands in the report, and nothing where there is one judge."""

from __future__ import annotations

from html_page import Page
from sample_metrics import sample_metrics

from vlmend.report.render import render_html

TITLE = "Do the judges agree?"


def test_agreement_and_corrected_rates_have_tables() -> None:
    metrics = sample_metrics()
    assert TITLE not in render_html(metrics)
    metrics["agreement"] = [
        {
            "suite": "all <suites>",
            "judges": ["prefix", "keywords"],
            "kappa": -0.125,
            "low": -0.5,
            "high": 0.25,
            "observed": 0.75,
            "n": 1200,
            "num_unscored": 3,
            "reason": "",
        }
    ]
    metrics["calibration"] = [
        {
            "suite": "icons",
            "arm": "base",
            "exit": None,
            "judge": "prefix",
            "raw": 0.5,
            "raw_low": 0.4,
            "raw_high": 0.6,
            "sensitivity": 0.9,
            "sensitivity_low": 0.8,
            "sensitivity_high": 0.95,
            "specificity": 0.1,
            "corrected": corrected,
            "num_labelled": 60,
            "clipped": corrected is not None,
            "reason": "" if corrected else "sensitivity + specificity is not above 1",
        }
        for corrected in (1.0, None)
    ]
    html = render_html(metrics)
    Page(html)
    assert TITLE in html
    assert "all &lt;suites&gt;" in html.replace("<wbr>", "")
    for text in ("\u22120.12", "\u22120.50 to 0.25", "75.0", "1,200", "90.0 (80.0\u201395.0)"):
        assert text in html, text
    assert "was cut" in html
    assert "is not above 1" in html
    why = "9 of 10 items unscored: coverage 10.0 % is below 98 %"
    hidden = {"raw": None, "raw_low": None, "raw_high": None, "withheld": why, "reason": why}
    metrics["calibration"] = [{**metrics["calibration"][1], **hidden}]
    html = render_html(metrics)
    assert '<td class="num">withheld' in html
    assert "coverage 10.0 % is below 98 %" in html
