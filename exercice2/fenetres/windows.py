"""Fenêtres glissantes en temps d'événement : exactes, rejouables. Logique pure, sans Kafka ni horloge.

    windows = HopWindows(size=60_000, slide=10_000)       une minute, toutes les dix secondes
    windows.add("paiement", 1990, 1_767_225_600_123)      un événement : clé, valeur, instant
    windows.advance(1_767_225_665_000)                    le watermark avance : rend les fenêtres closes
    windows.take_updates(), windows.take_late()           corrections et événements refusés depuis le dernier appel

Un instant est un entier, en millisecondes depuis 1970 (négatif avant). Une valeur est un nombre exact (des
centimes entiers, un Decimal) : une somme de flottants dériverait. Une clé est n'importe quel objet hachable.

Deux sortes de fenêtres, égales à celles d'Apache Flink SQL :

HopWindows        [début, fin[, de longueur ``size``, alignées sur 1970, une tous les ``slide`` (HOP). Une
                  fenêtre sans événement n'existe pas. Plus long que ``size``, ``slide`` laisse des trous.
TrailingWindows   pour chaque événement, les ``size`` dernières millisecondes de sa clé, bornes comprises
                  (OVER … RANGE PRECEDING). Les événements du même instant reçoivent le même résultat.

Le watermark W dit : « plus rien n'arrivera d'antérieur ou égal à W ». Une fenêtre se ferme quand W atteint sa
dernière milliseconde (fin - 1), une fois, et ne change plus, sauf tolérance (``grace``). Un événement en retard se
juge fenêtre par fenêtre : il compte dans celles qui sont encore ouvertes ; il est refusé s'il n'en reste aucune.
"""

from exercice2.fenetres.hop import HopWindows, Slicing
from exercice2.fenetres.trailing import TrailingWindows
from exercice2.fenetres.watermarks import Watermarks
from exercice2.fenetres.window import NEVER, Late, Result, Stats

__all__ = ["NEVER", "HopWindows", "Late", "Result", "Slicing", "Stats", "TrailingWindows", "Watermarks"]
