"""Les trois exercices pendant que tout casse, puis les comptes (« make chaos »).

- ``script`` : un script qu'on tue, gèle, relance ; ``servers`` : les serveurs de « python -m services » ;
- ``rows``, ``bank``, ``sales`` : ce qui tourne, ce qu'on lui fait, ce qui doit en sortir : exercices 1, 2 et 3 ;
- ``verdicts``, ``apart``, ``network`` : pour l'exercice 2, les comptes, un topic à part, un réseau qui va mal ;
- ``__main__`` : les pannes, l'une après l'autre, et le rapport.
"""
