"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_tasks() -> Mapping[str, str]:
    """OpenML-CC18: a task for each of its 30 tables, and one that reads any table from a file."""
    return {
        "openml": "xmodal_openml.task:OpenML",
        "openml/analcatdata_authorship": "xmodal_openml.benchmark:AnalcatdataAuthorship",
        "openml/analcatdata_dmft": "xmodal_openml.benchmark:AnalcatdataDmft",
        "openml/balance-scale": "xmodal_openml.benchmark:BalanceScale",
        "openml/banknote-authentication": "xmodal_openml.benchmark:BanknoteAuthentication",
        "openml/blood-transfusion-service-center": "xmodal_openml.benchmark:BloodTransfusion",
        "openml/breast-w": "xmodal_openml.benchmark:BreastW",
        "openml/car": "xmodal_openml.benchmark:Car",
        "openml/climate-model-simulation-crashes": "xmodal_openml.benchmark:ClimateModel",
        "openml/cmc": "xmodal_openml.benchmark:Cmc",
        "openml/credit-approval": "xmodal_openml.benchmark:CreditApproval",
        "openml/credit-g": "xmodal_openml.benchmark:CreditG",
        "openml/cylinder-bands": "xmodal_openml.benchmark:CylinderBands",
        "openml/diabetes": "xmodal_openml.benchmark:Diabetes",
        "openml/dresses-sales": "xmodal_openml.benchmark:DressesSales",
        "openml/eucalyptus": "xmodal_openml.benchmark:Eucalyptus",
        "openml/ilpd": "xmodal_openml.benchmark:Ilpd",
        "openml/kc2": "xmodal_openml.benchmark:Kc2",
        "openml/mfeat-fourier": "xmodal_openml.benchmark:MfeatFourier",
        "openml/mfeat-karhunen": "xmodal_openml.benchmark:MfeatKarhunen",
        "openml/mfeat-morphological": "xmodal_openml.benchmark:MfeatMorphological",
        "openml/mfeat-zernike": "xmodal_openml.benchmark:MfeatZernike",
        "openml/MiceProtein": "xmodal_openml.benchmark:MiceProtein",
        "openml/pc1": "xmodal_openml.benchmark:Pc1",
        "openml/pc3": "xmodal_openml.benchmark:Pc3",
        "openml/pc4": "xmodal_openml.benchmark:Pc4",
        "openml/qsar-biodeg": "xmodal_openml.benchmark:QsarBiodeg",
        "openml/steel-plates-fault": "xmodal_openml.benchmark:SteelPlatesFault",
        "openml/tic-tac-toe": "xmodal_openml.benchmark:TicTacToe",
        "openml/vehicle": "xmodal_openml.benchmark:Vehicle",
        "openml/wdbc": "xmodal_openml.benchmark:Wdbc",
    }
