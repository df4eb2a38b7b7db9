"""Learned rewards: their losses, how far a preference is to be trusted, and whom they serve.

From pairs (bradley_terry.py)
  bradley_terry                   margins, label smoothing, centring, weights
  preference_strength             the mean margin of an ensemble, and its spread
  strength_groups, flip_mask      pairs by that strength
  difference_objective            MetaRM: how well answers are told apart without labels
  meta_gradient                   MetaRM: a loss's gradient after one step up that objective
Two views of the same answers (contrastive.py)
  info_nce, swav, sinkhorn, difference_views
Annotators who disagree (annotators.py)
  annotator_loglikelihood, hard_assignment, soft_assignment, SoftAssignment
  mixture_bradley_terry           a reward model for each group
  fit_annotator_mixture           both of them, in a table; AnnotatorMixture
  maxmin_weights                  weight on the group with the lowest reward
  exponentiated_weights, standardize_groups, aggregate_groups
Policy discrimination, POLAR (policy_discrimination.py)
  policy_pairs, reference_triples, Triple, comparison_input, ComparisonInput
  policy_discrimination           the exact answer in a table
How far scores agree (agreement.py)
  preference_agreement, standardized_mean
"""

from polgrad.reward_models.agreement import preference_agreement, standardized_mean
from polgrad.reward_models.annotators import (
    AnnotatorMixture,
    SoftAssignment,
    aggregate_groups,
    annotator_loglikelihood,
    exponentiated_weights,
    fit_annotator_mixture,
    hard_assignment,
    maxmin_weights,
    mixture_bradley_terry,
    soft_assignment,
    standardize_groups,
)
from polgrad.reward_models.bradley_terry import (
    PreferenceStrength,
    bradley_terry,
    difference_objective,
    flip_mask,
    meta_gradient,
    preference_strength,
    strength_groups,
)
from polgrad.reward_models.contrastive import difference_views, info_nce, sinkhorn, swav
from polgrad.reward_models.policy_discrimination import (
    ComparisonInput,
    Triple,
    comparison_input,
    policy_discrimination,
    policy_pairs,
    reference_triples,
)

__all__ = [
    "AnnotatorMixture",
    "ComparisonInput",
    "PreferenceStrength",
    "SoftAssignment",
    "Triple",
    "aggregate_groups",
    "annotator_loglikelihood",
    "bradley_terry",
    "comparison_input",
    "difference_objective",
    "difference_views",
    "exponentiated_weights",
    "fit_annotator_mixture",
    "flip_mask",
    "hard_assignment",
    "info_nce",
    "maxmin_weights",
    "meta_gradient",
    "mixture_bradley_terry",
    "policy_discrimination",
    "policy_pairs",
    "preference_agreement",
    "preference_strength",
    "reference_triples",
    "sinkhorn",
    "soft_assignment",
    "standardize_groups",
    "standardized_mean",
    "strength_groups",
    "swav",
]
