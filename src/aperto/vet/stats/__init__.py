"""Statistics of scores: intervals, paired differences, repeats, power, judges that err."""

from aperto.vet.stats.bootstrap import bootstrap
from aperto.vet.stats.interval import (
    Estimate,
    clopper_pearson,
    mean_estimate,
    upper_of_none,
    wilson,
)
from aperto.vet.stats.judges import (
    JudgeErrors,
    corrected_difference,
    corrected_rate,
    rogan_gladen,
)
from aperto.vet.stats.paired import (
    NonInferiority,
    mcnemar,
    negated,
    paired_difference,
    tango_difference,
    tango_interval,
)
from aperto.vet.stats.power import (
    Spread,
    mean_se,
    minimum_detectable_effect,
    non_inferiority_power,
    non_inferiority_size,
    pass_all,
    sample_size,
)
from aperto.vet.stats.repeats import consensus_at_k, pass_all_k, pass_at_k
from aperto.vet.stats.simulate import Scenario, Share, Simulated, simulate, spread_of

__all__ = [
    "Estimate",
    "JudgeErrors",
    "NonInferiority",
    "Scenario",
    "Share",
    "Simulated",
    "Spread",
    "bootstrap",
    "clopper_pearson",
    "consensus_at_k",
    "corrected_difference",
    "corrected_rate",
    "mcnemar",
    "mean_estimate",
    "mean_se",
    "minimum_detectable_effect",
    "negated",
    "non_inferiority_power",
    "non_inferiority_size",
    "paired_difference",
    "pass_all",
    "pass_all_k",
    "pass_at_k",
    "rogan_gladen",
    "sample_size",
    "simulate",
    "spread_of",
    "tango_difference",
    "tango_interval",
    "upper_of_none",
    "wilson",
]
