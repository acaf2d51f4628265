"""Le contrat des messages : un schéma JSON par sorte (dossier contrats), et sa version dans un en-tête.

L'en-tête « contrat » dit ``vente/1``. Un changement compatible (un champ facultatif de plus) garde le numéro : qui ne
connaît pas ce champ l'ignore. Tout autre changement prend un numéro de plus et un autre topic : l'ancien lecteur garde
l'ancien topic jusqu'à ce qu'il soit vide.
"""

HEADER = "contrat"
SALE, TRANSACTION, WINDOW, LETTER = "vente/1", "transaction/1", "fenetre/1", "lettre_morte/1"


def header(contract: str) -> tuple[str, str | bytes | None]:
    """L'en-tête d'un message de ce contrat."""
    return HEADER, contract.encode()
