"""Un fichier a-t-il changé, a-t-il fini de changer ? Ce qu'en disent sa taille et sa date."""

import os

SETTLE_SECONDS = 0.5  # un fichier réécrit est jugé quand il n'a plus bougé depuis ce temps…
SETTLE_MAX_SECONDS = 5.0  # … ou au plus tard après celui-ci
TICK_SECONDS = 2.0  # pas des dates du plus grossier des systèmes de fichiers (FAT)


def signature(stat: os.stat_result) -> tuple[int, ...]:
    """Ce qui change dès qu'on écrit, sauf si c'est à la même date et de la même taille."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class Checked:
    """La dernière fois que le contenu d'un fichier ouvert a été comparé à ce qu'on en a lu."""

    def __init__(self) -> None:
        self.seen: tuple[int, ...] = ()  # sa taille et sa date d'alors
        self.disturbed = False  # ce qui était déjà lu avait changé
        self.sure = False  # sa date était assez vieille : une écriture de plus l'aurait changée

    def doubtful(self, stat: os.stat_result) -> bool:
        """Vrai s'il faut comparer de nouveau."""
        return not self.sure or signature(stat) != self.seen

    def note(self, stat: os.stat_result, wall: float, *, same: bool) -> None:
        """Retient ce que la comparaison a donné ; ``wall`` : l'heure qu'il était juste avant, en secondes."""
        self.disturbed = not same
        self.sure = same and wall - stat.st_mtime > TICK_SECONDS
        if same:
            self.seen = signature(stat)


class Settling:
    """L'attente qu'un fichier réécrit ne bouge plus : avant, on n'en verrait qu'une partie."""

    def __init__(self) -> None:
        self.waiting = False
        self._seen: tuple[int, ...] = ()
        self._seen_at = self._began_at = 0.0

    def over(self, now: float, stat: os.stat_result) -> bool:
        """Vrai quand il ne bouge plus, ou qu'il a trop fait attendre."""
        if not self.waiting:
            self.waiting, self._began_at = True, now
        if signature(stat) != self._seen:
            self._seen, self._seen_at = signature(stat), now
        self.waiting = now - self._seen_at < SETTLE_SECONDS and now - self._began_at < SETTLE_MAX_SECONDS
        return not self.waiting
