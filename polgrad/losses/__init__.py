"""Log-probabilities (or scores) in, unreduced losses out: minimised, never divided by a count.

Policy gradients on tokens (policy_gradient.py)
  reinforce                       score function
  ppo_clip                        clipped ratio; clip-higher, dual clip
  gspo, gspo_token                clipped sequence ratio
  cispo, sapo                     capped, softly gated ratio
  dppo_tv, dppo_kl                mask tokens by the change of their probability (off_policy.py)
  dro                             a squared log ratio instead of a ratio
Policy gradients with one ratio a sequence (sequence_ratio.py)
  ppo_clip_sequence               the product of the tokens' ratios, clipped
  gmpo, luspo                     geometric mean of clipped tokens; gspo times the length
  vespo, vespo_weights            a soft weight instead of a clip
The entropy mechanism (entropy_mechanism.py), on tokens that `polgrad.selection` picks
  clip_cov, kl_cov                leave out, or penalise, tokens of high covariance
Policy gradients on whole sequences
  topr, topr_weights              REINFORCE on logged data, tapered weights (topr.py)
  f_dpg, f_dpg_pseudo_reward      any f-divergence to a target (f_dpg.py)
  targets                         such targets, their normaliser and baseline (targets.py)
  nash_md                         preferences against an opponent (nash_md.py)
Right and wrong answers to a question
  disco, disco_b                  a ranking of scores (disco.py)
  sequence_score                  what they rank
  kl_hinge, behavior_kl           and the bound that holds the policy near its samples
  nft, nft_prompt_weight          likelihood of both, the wrong ones by an implicit policy (nft.py)
  implicit_negative_policy        that policy, in a table
Preference pairs and rankings (dpo.py)
  dpo, plackett_luce              logistic losses of two, of K answers
  ipo                             squared loss of two answers
  implicit_reward, preference_margin
  hinge, exo, discopop            other losses of the margin (pairs.py)
  exponential_margin, linear_margin
  robust_dpo, xpo                 labels flipped at a known rate; online, with optimism
  nca, bco, apo_zero, apo_down    each answer held to the reference (absolute_pairs.py)
  aot, aot_unpaired               margins by quantiles of the batch (optimal_transport.py)
  imitation, rpo, rpo_average     likelihood, alone and beside dpo (supervised.py)
  f_sft                           and held to the reference (f_sft.py)
  simpo, alphapo                  without a reference (reference_free.py)
  cpo, slic, tpo                  the same, with imitation
  orpo, log_odds
  kto, kto_reference_point        single answers, good or bad (unpaired.py)
  bco_unpaired, density_weight
  RewardShift, init_reward_shift, update_reward_shift
  f_dpo_score                     what pair losses are fed with (likelihoods.py):
  desensitized_logp               other divergences, lengths that count less,
  wpo_weight                      pairs that the policy would not draw
  debias_flips                    any pair loss under flipped labels (transforms.py)
  smooth_labels                   and where labels are believed to be wrong
  flipped_probability, unflipped_probability
  cpl, cpl_ranked                 segments of behaviour (cpl.py)
  segment_score
  implicit_value                  logits read as values
  unlikelihood                    of tokens to avoid (unlikelihood.py)
Lists of labelled answers: learning to rank (listwise.py)
  lipo                            pairs weighed by what their order is worth to the list
  pairwise_logistic, pairwise_hinge
  listwise_softmax
  pointwise_squared, pointwise_sigmoid
  ranking                         places, gains, weights and labels of such a list (ranking.py)
Reward models from preferences (reward_model.py)
  bradley_terry                   margins, label smoothing, centring, weights
  preference_strength             what an ensemble thinks of a label
  strength_groups, flip_mask
  difference_objective            answers told apart without labels (MetaRM),
  meta_gradient                   and the loss where a step up that leads
  simcse, swav                    two views of the same answers (contrastive.py)
  sinkhorn, difference_views
Annotators who disagree (mixture.py)
  annotator_loglikelihood, hard_assignment, soft_assignment
  mixture_bradley_terry           a reward model for each group
  maxmin_weights                  the worst-off group, or softly
  exponentiated_weights, standardize_groups, aggregate_groups
Likelihood of the better samples of a group (best_of_n.py)
  best_of_n, reward_weighted      the best one, or all by their reward
  ordered_pairs                   a group as pairs
Scored pairs and groups (copg.py)
  copg, copg_group                policy gradient off-policy, a partner as the baseline
  p3o_v1, p3o_v2                  the same with PPO's clips, of a sample or a pair (p3o.py)
  pairwise_policy_gradient        and without any
Self-play on preference pairs (inpo.py)
  inpo, inpo_contrast             mirror descent with a reference, as a regression
  dno                             soft policy iteration, as a classification (dno.py)
  sppo                            multiplicative weights, as a regression
Terms beside the policy's
  kl_penalty                      KL to a reference (kl.py)
  kdrl                            a policy gradient and a teacher (distillation.py)
  distillation_advantages, teacher_log_ratio     the teacher as a reward
  distillation_mask, top_k_kl
  value_loss, td_loss             critics (value.py)
  expectile_loss
  entropy_bonus                   and the strength of such terms (coefficients.py):
  adaptive_kl, adaptive_entropy   controllers
  dynamic_kl_coefficient, annealed_coefficient   schedules
Weights and masks for a sampler that is not quite the policy (correction.py)
  truncated_importance_weights    token or sequence ratios, truncated or masked
  off_policy_sequence_mask        drops bad sequences that the policy has left
  rejection_mask                  keeps tokens or sequences whose ratio lies within a band
  normalized_weights              scales weights to a mean of 1
"""

from polgrad.advantages.baselines import baseline_for_fraction, effective_positive_fraction
from polgrad.advantages.token_rewards import distillation_advantages, teacher_log_ratio
from polgrad.data.preferences import OrderedPairs, ordered_pairs
from polgrad.losses import ranking, targets
from polgrad.losses.groups import (
    best_of_n,
    copg_group,
    disco,
    disco_b,
    p3o_v1,
    p3o_v2,
    pairwise_policy_gradient,
    reward_weighted,
)
from polgrad.losses.inputs import (
    density_weight,
    desensitized_logp,
    f_dpg_pseudo_reward,
    f_dpo_score,
    implicit_reward,
    inpo_contrast,
    kto_reference_point,
    log_odds,
    nft_prompt_weight,
    preference_margin,
    segment_score,
    sequence_score,
    topr_weights,
    vespo_weights,
    wpo_weight,
)
from polgrad.losses.labels import aot_unpaired, bco_unpaired, kto
from polgrad.losses.lists import (
    cpl_ranked,
    lipo,
    listwise_softmax,
    pairwise_hinge,
    pairwise_logistic,
    plackett_luce,
    pointwise_sigmoid,
    pointwise_squared,
)
from polgrad.losses.pairs import (
    aot,
    apo_down,
    apo_zero,
    bco,
    discopop,
    dpo,
    exo,
    exponential_margin,
    hinge,
    ipo,
    linear_margin,
    nca,
    robust_dpo,
    rpo,
    rpo_average,
)
from polgrad.losses.pairs_online import copg, dno, inpo, sppo, xpo
from polgrad.losses.penalties import behavior_kl, entropy_bonus, kl_hinge, kl_penalty
from polgrad.losses.reference_free import alphapo, cpl, cpo, orpo, simpo, slic, tpo
from polgrad.losses.sequences import (
    f_dpg,
    gmpo,
    gspo,
    gspo_token,
    luspo,
    nash_md,
    ppo_clip_sequence,
    topr,
    vespo,
)
from polgrad.losses.supervised import f_sft, imitation, unlikelihood
from polgrad.losses.tokens import (
    cispo,
    clip_cov,
    dppo_kl,
    dppo_tv,
    dro,
    kdrl,
    kl_cov,
    nft,
    ppo_clip,
    reinforce,
    sapo,
)
from polgrad.losses.transforms import (
    debias_flips,
    flipped_probability,
    smooth_labels,
    unflipped_probability,
)
from polgrad.losses.unpaired import RewardShift, init_reward_shift, update_reward_shift
from polgrad.losses.values import expectile_loss, implicit_value, td_loss, value_loss
from polgrad.losses.vocabulary import top_k_kl
from polgrad.ratios import normalized_weights, truncated_importance_weights
from polgrad.reward_models.annotators import (
    SoftAssignment,
    aggregate_groups,
    annotator_loglikelihood,
    exponentiated_weights,
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
from polgrad.reward_models.contrastive import difference_views, sinkhorn, swav
from polgrad.reward_models.contrastive import info_nce as simcse
from polgrad.schedules import (
    Coefficient,
    adaptive_entropy,
    adaptive_kl,
    annealed_coefficient,
    dynamic_kl_coefficient,
)
from polgrad.selection.samples import distillation_mask
from polgrad.selection.tokens import off_policy_sequence_mask, rejection_mask
from polgrad.tabular.bandits import implicit_negative_policy

__all__ = [
    "RewardShift",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_unpaired",
    "behavior_kl",
    "best_of_n",
    "cispo",
    "clip_cov",
    "copg",
    "copg_group",
    "cpl",
    "cpl_ranked",
    "cpo",
    "debias_flips",
    "density_weight",
    "desensitized_logp",
    "disco",
    "disco_b",
    "discopop",
    "dno",
    "dpo",
    "dppo_kl",
    "dppo_tv",
    "dro",
    "entropy_bonus",
    "exo",
    "expectile_loss",
    "exponential_margin",
    "f_dpg",
    "f_dpg_pseudo_reward",
    "f_dpo_score",
    "f_sft",
    "flipped_probability",
    "gmpo",
    "gspo",
    "gspo_token",
    "hinge",
    "imitation",
    "implicit_reward",
    "implicit_value",
    "init_reward_shift",
    "inpo",
    "inpo_contrast",
    "ipo",
    "kdrl",
    "kl_cov",
    "kl_hinge",
    "kl_penalty",
    "kto",
    "kto_reference_point",
    "linear_margin",
    "lipo",
    "listwise_softmax",
    "log_odds",
    "luspo",
    "nash_md",
    "nca",
    "nft",
    "nft_prompt_weight",
    "orpo",
    "p3o_v1",
    "p3o_v2",
    "pairwise_hinge",
    "pairwise_logistic",
    "pairwise_policy_gradient",
    "plackett_luce",
    "pointwise_sigmoid",
    "pointwise_squared",
    "ppo_clip",
    "ppo_clip_sequence",
    "preference_margin",
    "ranking",
    "reinforce",
    "reward_weighted",
    "robust_dpo",
    "rpo",
    "rpo_average",
    "sapo",
    "segment_score",
    "sequence_score",
    "simpo",
    "slic",
    "smooth_labels",
    "sppo",
    "targets",
    "td_loss",
    "top_k_kl",
    "topr",
    "topr_weights",
    "tpo",
    "unflipped_probability",
    "unlikelihood",
    "update_reward_shift",
    "value_loss",
    "vespo",
    "vespo_weights",
    "wpo_weight",
    "xpo",
]
