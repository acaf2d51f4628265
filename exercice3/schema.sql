-- Tables de l'exercice 3 dans PostgreSQL (16 ou plus récent). schema.py applique ce fichier une
-- fois, et de nouveau s'il a changé : il ne crée que ce qui manque et ne remplace jamais la table
-- ventes, si bien que les vues, les droits et les connexions ouvertes de Tableau survivent à tout.

CREATE TABLE IF NOT EXISTS ventes (
    id         text           PRIMARY KEY,
    produit    text           NOT NULL,
    region     text           NOT NULL,
    montant    numeric(10, 2) NOT NULL CHECK (montant > 0 AND montant <> 'NaN'),
    date_vente timestamp      NOT NULL,
    charge_le  timestamptz    NOT NULL DEFAULT now()
);

-- Une correction est une version plus grande de la même vente ; annulée, elle ne compte plus.
ALTER TABLE ventes ADD COLUMN IF NOT EXISTS version integer NOT NULL DEFAULT 1;
ALTER TABLE ventes ADD COLUMN IF NOT EXISTS annulee boolean NOT NULL DEFAULT false;

-- Pour qui lit des ventes d'une période. Les tableaux de bord lisent des sommes : un index de plus,
-- par région ou par produit, ralentirait chaque chargement sans servir à aucune de leurs requêtes.
CREATE INDEX IF NOT EXISTS ventes_date_vente ON ventes (date_vente);
DROP INDEX IF EXISTS ventes_region_date, ventes_produit_date;

COMMENT ON TABLE ventes IS 'Une ligne par vente, chargée par pg.py';
COMMENT ON COLUMN ventes.id IS 'Identifiant unique de la vente, le même dans Kafka et MongoDB';
COMMENT ON COLUMN ventes.produit IS 'Produit vendu';
COMMENT ON COLUMN ventes.region IS 'Région ou pays de la vente';
COMMENT ON COLUMN ventes.montant IS 'Montant en euros, exact au centime';
COMMENT ON COLUMN ventes.date_vente IS 'Date et heure locales de la vente, sans fuseau';
COMMENT ON COLUMN ventes.version IS '1, et un de plus à chaque correction ; la plus grande est celle de cette ligne';
COMMENT ON COLUMN ventes.annulee IS 'Vente annulée : gardée, mais dans aucune somme';
COMMENT ON COLUMN ventes.charge_le IS 'Moment du chargement dans PostgreSQL';

-- Un fichier chargé y est inscrit dans la transaction même de ses ventes : la clé primaire
-- empêche de le charger deux fois.
CREATE TABLE IF NOT EXISTS ventes_chargements (
    fichier   text        NOT NULL,
    sha256    text        NOT NULL,
    lignes    bigint      NOT NULL,
    nouvelles bigint      NOT NULL DEFAULT 0,
    modifiees bigint      NOT NULL DEFAULT 0,
    rejetees  bigint      NOT NULL DEFAULT 0,
    charge_le timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fichier, sha256)
);
COMMENT ON TABLE ventes_chargements IS 'Un fichier CSV chargé par ligne';

CREATE TABLE IF NOT EXISTS ventes_rejets (
    fichier   text        NOT NULL,
    sha256    text        NOT NULL,
    ligne     bigint      NOT NULL,
    raison    text        NOT NULL,
    contenu   text        NOT NULL,
    rejete_le timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fichier, sha256, ligne)
);
COMMENT ON TABLE ventes_rejets IS 'Lignes refusées : fichier, numéro de ligne (l''en-tête est la ligne 1) et raison';

-- Où en est la lecture d'un dossier : tous ses lots jusqu'à celui-là sont chargés, et tout ce qui y
-- avait été écrit à cet instant a été regardé. L'historique ne se relit donc pas à chaque passage.
CREATE TABLE IF NOT EXISTS ventes_suivi (
    dossier   text   PRIMARY KEY,
    lot       bigint NOT NULL,
    vu_jusque bigint NOT NULL
);
COMMENT ON TABLE ventes_suivi IS 'Dernier lot chargé sans trou, par dossier de fichiers';
