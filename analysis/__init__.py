"""Commands that read results: reports, figures and dashboards. Nothing imports them, and they import no torch."""
