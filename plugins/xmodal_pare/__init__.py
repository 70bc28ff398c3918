"""PaRe (Cai et al., ICML 2024): gate, mixer and schedules."""

CITATION = (
    "Cai, Li, Ma, Kang, Xie, Sun, Zhu: Enhancing Cross-Modal Fine-Tuning with Gradually "
    "Intermediate Modality Generation (PaRe), ICML 2024"
)
