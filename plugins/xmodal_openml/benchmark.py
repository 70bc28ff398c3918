"""The 30 tables of OpenML-CC18 as tasks, under OpenML's names.

Four tables are built without any file. The others are read from the data set in the cache, or from
``path``: the pack of all tables (``cc18_30.npz``), OpenML's ARFF file, or a folder that has either.
Every table is checked against what is published (``catalogue``), and stands in TabPFN's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation
from xmodal.data.tables import existing, remembered
from xmodal.errors import DataError
from xmodal.interfaces import TaskFacts
from xmodal_openml import copies, tables
from xmodal_openml.catalogue import TABLES, PublishedTable
from xmodal_openml.splits import sizes
from xmodal_openml.tables import Table
from xmodal_openml.task import TableSettings, TableTask, checksum, facts


class BenchmarkSettings(TableSettings):
    """Settings of a table of OpenML-CC18."""

    path: Path | None = Field(
        None,
        description="The pack of all tables (.npz), OpenML's .arff file, or a folder with one of "
        "them. Default: the data set in the cache.",
    )


class BenchmarkTable(TableTask):
    """One of the 30 tables; a subclass says which."""

    Config = BenchmarkSettings
    published: ClassVar[PublishedTable]
    build: ClassVar[Callable[[], Table] | None] = None

    @classmethod
    def card(cls, config: Any) -> DataCard:
        """OpenML's files of the table, and the pack of all tables."""
        return copies.card(cls.published)

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Whether it is built without a file, or there is one."""
        return cls.build is not None or super().ready(config, store)

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Read one of the fetched files, check it against what is published, and keep it open."""
        return copies.prepare(cls.published, wanted, folder)

    @classmethod
    def name(cls, config: Any) -> str:
        """The registered name."""
        return f"openml/{cls.published.name}"

    @classmethod
    def table(cls, config: BenchmarkSettings, store: Store) -> Table:
        """The whole table; as ORCA reads it, if ``protocol_split`` is its. Raises DataError."""
        table = cls._read(config, store)
        return copies.as_in_orca(table, cls.published) if config.protocol_split == "orca" else table

    @classmethod
    def _read(cls, config: BenchmarkSettings, store: Store) -> Table:
        if config.path is not None:
            path = copies.located(existing(config.path), cls.published)
            return remembered([path], cls.published.did, lambda: copies.read(path, cls.published))
        if cls.build is not None:
            return cls.build()
        folder = store.dataset(cls.card(config))
        if folder is None:
            raise DataError("\n".join(cls.missing(config, store)))
        return remembered(
            [folder / copies.ARRAYS[0]], cls.published.did, lambda: copies.opened(folder)
        )

    @classmethod
    def describe(cls, config: Any, store: Store) -> TaskFacts:
        """Facts of the table; as published, if it is not here."""
        if cls.ready(config, store):
            return super().describe(config, store)
        levels = cls.published.level_counts()
        if config.protocol_split == "orca":
            levels = copies.columns_in_orca(levels, cls.published)
        counts = sizes(cls.published.rows, config.protocol_split)
        return facts(cls.name(config), levels, len(cls.published.counts), counts)

    @classmethod
    def contents(cls, config: BenchmarkSettings, store: Store) -> Mapping[str, str]:
        """The table, not the pack in which it may lie; nothing if it is built."""
        if config.path is not None:
            return {"path": checksum(cls.table(config, store))}
        return {} if cls.build is not None else super().contents(config, store)


class BalanceScale(BenchmarkTable):
    """Balance beams: which side goes down."""

    published = TABLES["balance-scale"]
    build = staticmethod(tables.balance_scale)


class MfeatFourier(BenchmarkTable):
    """Handwritten digits, by Fourier coefficients of their shape."""

    published = TABLES["mfeat-fourier"]


class BreastW(BenchmarkTable):
    """Breast cancer Wisconsin, original: benign or malignant."""

    published = TABLES["breast-w"]


class MfeatKarhunen(BenchmarkTable):
    """Handwritten digits, by Karhunen-Loeve coefficients."""

    published = TABLES["mfeat-karhunen"]


class MfeatMorphological(BenchmarkTable):
    """Handwritten digits, by six morphological features."""

    published = TABLES["mfeat-morphological"]


class MfeatZernike(BenchmarkTable):
    """Handwritten digits, by Zernike moments."""

    published = TABLES["mfeat-zernike"]


class Cmc(BenchmarkTable):
    """Which contraceptive married women in Indonesia use."""

    published = TABLES["cmc"]


class CreditApproval(BenchmarkTable):
    """Credit cards, granted or not; columns are anonymous."""

    published = TABLES["credit-approval"]


class CreditG(BenchmarkTable):
    """German credit: good and bad risks."""

    published = TABLES["credit-g"]


class Diabetes(BenchmarkTable):
    """Diabetes among Pima women."""

    published = TABLES["diabetes"]


class TicTacToe(BenchmarkTable):
    """Finished tic-tac-toe boards: whether x, who began, won."""

    published = TABLES["tic-tac-toe"]
    build = staticmethod(tables.tic_tac_toe)


class Vehicle(BenchmarkTable):
    """Four vehicles, by their silhouettes."""

    published = TABLES["vehicle"]


class Eucalyptus(BenchmarkTable):
    """How well eucalypts suit a site in New Zealand."""

    published = TABLES["eucalyptus"]


class AnalcatdataAuthorship(BenchmarkTable):
    """Four authors, by counts of function words."""

    published = TABLES["analcatdata_authorship"]


class AnalcatdataDmft(BenchmarkTable):
    """Which prevention of tooth decay a child had."""

    published = TABLES["analcatdata_dmft"]


class Pc4(BenchmarkTable):
    """Defects in modules of NASA's flight software PC4."""

    published = TABLES["pc4"]


class Pc3(BenchmarkTable):
    """Defects in modules of NASA's flight software PC3."""

    published = TABLES["pc3"]


class Kc2(BenchmarkTable):
    """Defects in modules of NASA's ground software KC2."""

    published = TABLES["kc2"]


class Pc1(BenchmarkTable):
    """Defects in modules of NASA's flight software PC1."""

    published = TABLES["pc1"]


class BanknoteAuthentication(BenchmarkTable):
    """Banknotes, forged or not, by wavelets of their images."""

    published = TABLES["banknote-authentication"]


class BloodTransfusion(BenchmarkTable):
    """Whether a donor gave blood in March 2007."""

    published = TABLES["blood-transfusion-service-center"]


class Ilpd(BenchmarkTable):
    """Indian patients with and without a liver disease."""

    published = TABLES["ilpd"]


class QsarBiodeg(BenchmarkTable):
    """Chemicals, ready biodegradable or not."""

    published = TABLES["qsar-biodeg"]


class Wdbc(BenchmarkTable):
    """Breast cancer Wisconsin, diagnostic: 30 measurements of cell nuclei."""

    published = TABLES["wdbc"]
    build = staticmethod(tables.wdbc)


class CylinderBands(BenchmarkTable):
    """Whether a printing cylinder shows bands."""

    published = TABLES["cylinder-bands"]


class DressesSales(BenchmarkTable):
    """Whether a dress is recommended."""

    published = TABLES["dresses-sales"]


class MiceProtein(BenchmarkTable):
    """Eight kinds of mice, by proteins of their cortex."""

    published = TABLES["MiceProtein"]


class Car(BenchmarkTable):
    """Cars of a hierarchical decision model (Bohanec, 1997)."""

    published = TABLES["car"]
    build = staticmethod(tables.car)


class SteelPlatesFault(BenchmarkTable):
    """Seven faults of steel plates."""

    published = TABLES["steel-plates-fault"]


class ClimateModel(BenchmarkTable):
    """Whether a simulation of the climate crashed."""

    published = TABLES["climate-model-simulation-crashes"]
