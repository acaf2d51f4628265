"""Les trois exercices pendant que tout casse, puis les comptes (« make chaos »).

- ``script`` : un script qu'on tue, gèle, relance ; ``servers`` : les serveurs de « python -m services » ;
- ``rows``, ``sales`` : ce qui tourne, ce qu'on lui fait, et ce qui doit en sortir, pour les exercices 1 et 3 ;
- ``__main__`` : les pannes, l'une après l'autre, et le rapport.
"""
