"""Les tableaux de bord : le classeur Tableau, son générateur, l'aperçu dans un navigateur."""
