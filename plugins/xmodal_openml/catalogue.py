"""What is known of the 30 tables of OpenML-CC18 that TabPFN and the papers evaluate on.

Counts, levels and digests are those of TabPFN's own file (automl/TabPFN at ddf5e852,
``cc_test_datasets_multiclass.pickle``). File numbers and MD5 sums of OpenML's ARFF files come from
public lists of pins; where there is none, OpenML's description of the table names file and sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    ``counts``: rows of each class, in the order of the codes. ``levels``: how many categories a
    column has, for those that are not numbers. ``missing`` cells. ``digest``: the first 16
    digits of ``tables.fingerprint``. ``file``, ``md5``: OpenML's ARFF file, where they are known.
    ``ignored``: columns of the file that are identifiers, by OpenML's description.
    """

    did: int
    name: str
    columns: int
    counts: tuple[int, ...]
    digest: str
    missing: int = 0
    levels: Mapping[int, int] = field(default_factory=dict)
    file: int | None = None
    md5: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return sum(self.counts)

    def level_counts(self) -> tuple[int, ...]:
        """One entry a column: 0 for a number, m for a category of m levels."""
        return tuple(self.levels.get(column, 0) for column in range(self.columns))


_ALL = (
    PublishedTable(
        11,
        "balance-scale",
        4,
        (288, 49, 288),
        "7236e1eddbb916c6",
        file=11,
        md5="76938608d472f620c170cef9c8c1fa65",
    ),
    PublishedTable(
        14,
        "mfeat-fourier",
        76,
        (200, 200, 200, 200, 200, 200, 200, 200, 200, 200),
        "f6a37a0c0cca2027",
    ),
    PublishedTable(
        15,
        "breast-w",
        9,
        (458, 241),
        "da67f7c9a2899807",
        missing=16,
        file=52350,
        md5="88633c065209e7a57323d3d7f2d00546",
    ),
    PublishedTable(
        16,
        "mfeat-karhunen",
        64,
        (200, 200, 200, 200, 200, 200, 200, 200, 200, 200),
        "9e0453a601f3bb4f",
    ),
    PublishedTable(
        18,
        "mfeat-morphological",
        6,
        (200, 200, 200, 200, 200, 200, 200, 200, 200, 200),
        "4b68345a8a8b6819",
    ),
    PublishedTable(
        22,
        "mfeat-zernike",
        47,
        (200, 200, 200, 200, 200, 200, 200, 200, 200, 200),
        "09bdc665b899415e",
        md5="590fe11f6c0eeacd456609f22c4eaf6d",
    ),
    PublishedTable(
        23,
        "cmc",
        9,
        (629, 333, 511),
        "301c61b44d8b2027",
        levels={1: 4, 2: 4, 4: 2, 5: 2, 6: 4, 7: 4, 8: 2},
        file=23,
        md5="3149646ecff276abac3e892d1556655f",
    ),
    PublishedTable(
        29,
        "credit-approval",
        15,
        (307, 383),
        "5e5c2f1c99c2051f",
        missing=67,
        levels={0: 2, 3: 3, 4: 3, 5: 14, 6: 9, 8: 2, 9: 2, 11: 2, 12: 3},
        md5="a948be968270a823fce432227c1aa36e",
    ),
    PublishedTable(
        31,
        "credit-g",
        20,
        (700, 300),
        "76d8db62eb5580a7",
        levels={
            0: 4,
            2: 5,
            3: 10,
            5: 5,
            6: 5,
            8: 4,
            9: 3,
            11: 4,
            13: 3,
            14: 3,
            16: 4,
            18: 2,
            19: 2,
        },
        file=31,
        md5="9a475053fed0c26ee95cd4525e50074c",
    ),
    PublishedTable(
        37,
        "diabetes",
        8,
        (500, 268),
        "0d6c46806968f619",
        file=37,
        md5="3cbaa3e54586aa88cf6aacb4033e4470",
    ),
    PublishedTable(
        50,
        "tic-tac-toe",
        9,
        (332, 626),
        "6ec81c87517ebd46",
        levels={0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3},
        file=50,
        md5="34b2992c41e5e23c42769817e96305ac",
    ),
    PublishedTable(
        54,
        "vehicle",
        18,
        (212, 217, 218, 199),
        "b7ed6b987b379a8d",
        file=54,
        md5="fbba18157b188f309d772f9ca4e578f5",
    ),
    PublishedTable(
        188,
        "eucalyptus",
        19,
        (180, 107, 130, 214, 105),
        "bb6a792e9fdc2b29",
        missing=448,
        levels={0: 16, 2: 8, 3: 14, 4: 12, 9: 27},
    ),
    PublishedTable(458, "analcatdata_authorship", 70, (317, 296, 55, 173), "4cf38ecdd17e5998"),
    PublishedTable(
        469,
        "analcatdata_dmft",
        4,
        (127, 132, 124, 155, 136, 123),
        "0430e459e3e6d18e",
        levels={0: 9, 1: 7, 2: 2, 3: 3},
    ),
    PublishedTable(1049, "pc4", 37, (1280, 178), "2b81ecfffab2eada"),
    PublishedTable(1050, "pc3", 37, (1403, 160), "da1f33b58099516f"),
    PublishedTable(1063, "kc2", 21, (415, 107), "c465952c543b758f"),
    PublishedTable(1068, "pc1", 21, (1032, 77), "afb0c55d6b75cd43"),
    PublishedTable(
        1462,
        "banknote-authentication",
        4,
        (762, 610),
        "df4887ed73c56132",
        file=1586223,
        md5="baa2dc5b745775a943ebeb9c276401f8",
    ),
    PublishedTable(
        1464,
        "blood-transfusion-service-center",
        4,
        (570, 178),
        "1f1ce46f4ed3db40",
        file=1586225,
        md5="c3242468edab8c2e7a907674122dc851",
    ),
    PublishedTable(
        1480,
        "ilpd",
        10,
        (416, 167),
        "b28cfaa3ca23d5f4",
        levels={1: 2},
        file=1590565,
        md5="155295549a459387fb71312caf1b8360",
    ),
    PublishedTable(
        1494,
        "qsar-biodeg",
        41,
        (699, 356),
        "a1940b901737ec53",
        file=1592286,
        md5="a2c189cd65511103fa540d7186155c24",
    ),
    PublishedTable(
        1510,
        "wdbc",
        30,
        (357, 212),
        "033628927cd93fed",
        file=1592318,
        md5="7aa183d3657e364911ced0cbd6b272bd",
    ),
    PublishedTable(
        6332,
        "cylinder-bands",
        37,
        (228, 312),
        "234c9e5145293ad9",
        missing=999,
        levels={
            0: 71,
            2: 2,
            3: 1,
            4: 2,
            5: 2,
            6: 1,
            7: 3,
            8: 3,
            9: 2,
            10: 3,
            11: 2,
            12: 4,
            13: 8,
            15: 3,
            16: 5,
            17: 2,
            20: 20,
            34: 7,
            36: 3,
        },
        file=1854224,
        md5="59ec3d17d1fb9fa79c3108a7a5a9bc5e",
        ignored=("timestamp", "cylinder_number"),
    ),
    PublishedTable(
        23381,
        "dresses-sales",
        12,
        (290, 210),
        "5a6ced9426d41342",
        missing=835,
        levels={0: 13, 1: 7, 3: 7, 4: 8, 5: 16, 6: 17, 7: 4, 8: 23, 9: 22, 10: 24, 11: 14},
        file=1910507,
        md5="996f7aacb2eab289cc1a968e263f5281",
        ignored=("V1",),
    ),
    PublishedTable(
        40966,
        "MiceProtein",
        77,
        (150, 135, 150, 135, 135, 105, 135, 135),
        "0f8a39ef2c13d59f",
        missing=1396,
        file=17928620,
        md5="3c479a6885bfa0438971388283a1ce32",
        ignored=("MouseID", "Genotype", "Treatment", "Behavior"),
    ),
    PublishedTable(
        40975,
        "car",
        6,
        (1210, 384, 69, 65),
        "e255306777ebdb25",
        levels={0: 4, 1: 4, 2: 4, 3: 3, 4: 3, 5: 3},
        file=18116966,
        md5="baf70f94f550c2ba489422bb742c54ae",
    ),
    PublishedTable(
        40982,
        "steel-plates-fault",
        27,
        (402, 55, 391, 673, 158, 72, 190),
        "f56a9a4c646cf8b6",
        file=18151921,
        md5="7ccdabeb01749cce9fa3b1d4a702fb8c",
    ),
    PublishedTable(
        40994,
        "climate-model-simulation-crashes",
        18,
        (46, 494),
        "27ad1a0bb7daeb8d",
        file=18237248,
        md5="f7c55d9a11782a5ff980cee371787edd",
        ignored=("V1", "V2"),
    ),
)

TABLES: Mapping[str, PublishedTable] = {table.name: table for table in _ALL}
"""The 30 tables by OpenML's name."""
