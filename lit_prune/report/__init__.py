"""Combine the cells of a table: tidy frames, statistics and verdicts. No torch."""

from lit_prune.report.report import (
    Report as Report,
)
from lit_prune.report.report import (
    ReportRequest as ReportRequest,
)
from lit_prune.report.report import (
    assemble as assemble,
)
from lit_prune.report.report import (
    complete as complete,
)
from lit_prune.report.report import (
    histories as histories,
)
from lit_prune.report.report import (
    rank_agreement as rank_agreement,
)
from lit_prune.report.report import (
    reread as reread,
)
from lit_prune.report.report import (
    summarise as summarise,
)
from lit_prune.report.report import (
    with_statistics as with_statistics,
)
from lit_prune.report.verdicts import (
    judge as judge,
)
