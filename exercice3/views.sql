-- Ce que Tableau et l'aperçu lisent (PostgreSQL 16 ou plus récent). pg.py l'applique après
-- schema.sql si la table ventes n'a pas encore ses déclencheurs. Les noms des colonnes sont
-- une interface : on en ajoute, on n'en change pas.
--
-- ventes_par_heure, ventes_par_jour   sommes tenues à jour par PostgreSQL à chaque écriture de ventes
-- ventes_analyse                      la source des tableaux de bord : tout y est filtrable
-- ventes_par_periode                  par heure, jour, semaine, mois, avec la période précédente
-- ventes_par_region, _par_produit     rang et part
-- ventes_palmares                     rang et part de chaque produit dans sa région

-- Restes d'une table ventes effacée depuis : sans ses déclencheurs, leurs sommes seraient fausses.
DROP TABLE IF EXISTS ventes_par_heure, ventes_par_jour CASCADE;
DROP FUNCTION IF EXISTS ventes_compter, ventes_oublier CASCADE;

-- Dix millions de ventes tiennent en quelques centaines de milliers de sommes : c'est elles
-- que les vues lisent. Une somme retombée à zéro vente reste, et les vues l'ignorent.
CREATE TABLE ventes_par_heure (
    jour             date,
    heure            smallint,
    region           text,
    produit          text,
    nombre_ventes    bigint         NOT NULL,
    chiffre_affaires numeric(18, 2) NOT NULL,
    PRIMARY KEY (jour, heure, region, produit)
);
CREATE TABLE ventes_par_jour (
    jour             date,
    region           text,
    produit          text,
    nombre_ventes    bigint         NOT NULL,
    chiffre_affaires numeric(18, 2) NOT NULL,
    PRIMARY KEY (jour, region, produit)
);

-- Ajoute aux sommes les lignes écrites et en retire les lignes remplacées ou effacées, dans
-- la transaction même de l'écriture : elles ne peuvent pas s'écarter de la table ventes.
-- Triées : deux chargements simultanés prennent leurs verrous dans le même ordre.
CREATE FUNCTION ventes_compter() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ajouts   text := 'SELECT 1 AS signe, * FROM nouvelles';
    retraits text := 'SELECT -1 AS signe, * FROM anciennes';
BEGIN
    EXECUTE format(
        'WITH ecarts AS (
             SELECT
                 date_vente::date AS jour, extract(hour FROM date_vente)::smallint AS heure, region, produit,
                 sum(signe) AS nombre, sum(signe * montant) AS montant
             FROM (%1$s) AS lignes
             GROUP BY 1, 2, 3, 4
         ),
         par_heure AS (
             INSERT INTO %2$I.ventes_par_heure AS h
             SELECT * FROM ecarts ORDER BY jour, heure, region, produit
             ON CONFLICT (jour, heure, region, produit) DO UPDATE
                 SET nombre_ventes = h.nombre_ventes + excluded.nombre_ventes,
                     chiffre_affaires = h.chiffre_affaires + excluded.chiffre_affaires
         )
         INSERT INTO %2$I.ventes_par_jour AS j
         SELECT jour, region, produit, sum(nombre), sum(montant)
         FROM ecarts
         GROUP BY jour, region, produit
         ORDER BY jour, region, produit
         ON CONFLICT (jour, region, produit) DO UPDATE
             SET nombre_ventes = j.nombre_ventes + excluded.nombre_ventes,
                 chiffre_affaires = j.chiffre_affaires + excluded.chiffre_affaires',
        CASE TG_OP
            WHEN 'INSERT' THEN ajouts
            WHEN 'DELETE' THEN retraits
            ELSE ajouts || ' UNION ALL ' || retraits
        END,
        TG_TABLE_SCHEMA
    );
    RETURN NULL;
END
$$;

CREATE FUNCTION ventes_oublier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('TRUNCATE %1$I.ventes_par_heure, %1$I.ventes_par_jour', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;

CREATE TRIGGER ventes_ajoutees AFTER INSERT ON ventes
    REFERENCING NEW TABLE AS nouvelles
    FOR EACH STATEMENT EXECUTE FUNCTION ventes_compter();
CREATE TRIGGER ventes_modifiees AFTER UPDATE ON ventes
    REFERENCING NEW TABLE AS nouvelles OLD TABLE AS anciennes
    FOR EACH STATEMENT EXECUTE FUNCTION ventes_compter();
CREATE TRIGGER ventes_effacees AFTER DELETE ON ventes
    REFERENCING OLD TABLE AS anciennes
    FOR EACH STATEMENT EXECUTE FUNCTION ventes_compter();
CREATE TRIGGER ventes_videes AFTER TRUNCATE ON ventes
    FOR EACH STATEMENT EXECUTE FUNCTION ventes_oublier();

-- Les ventes déjà là. CREATE TRIGGER vient de verrouiller ventes : aucune ne passe entre les deux.
INSERT INTO ventes_par_heure
SELECT date_vente::date, extract(hour FROM date_vente), region, produit, count(*), sum(montant)
FROM ventes
GROUP BY 1, 2, 3, 4;
INSERT INTO ventes_par_jour
SELECT jour, region, produit, sum(nombre_ventes), sum(chiffre_affaires)
FROM ventes_par_heure
GROUP BY jour, region, produit;

-- Chaque mesure n'a qu'une définition.
CREATE OR REPLACE FUNCTION panier_moyen(chiffre_affaires numeric, nombre_ventes numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round(chiffre_affaires / nullif(nombre_ventes, 0), 2);
CREATE OR REPLACE FUNCTION evolution(valeur numeric, precedente numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round((valeur - precedente) / nullif(precedente, 0), 4);
CREATE OR REPLACE FUNCTION part(valeur numeric, total numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round(valeur / nullif(total, 0), 4);

-- La source des tableaux de bord. Toutes ses mesures s'additionnent : sous n'importe quel
-- filtre, une somme est juste. Pour cela une journée y compte plusieurs fois, chaque fois
-- dans une autre colonne : le jour même, sept jours plus tard (comparaison), et dans chacun
-- des sept jours qui suivent (moyenne mobile). Un calcul de table de Tableau, lui, sauterait
-- les jours sans vente et repartirait de zéro au bord du filtre.
CREATE VIEW ventes_analyse AS
WITH bornes AS (
    SELECT
        (SELECT min(jour) FROM ventes_par_jour WHERE nombre_ventes > 0) AS premier,
        jour AS dernier,
        heure AS derniere_heure
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
    ORDER BY jour DESC, heure DESC
    LIMIT 1
),
lignes AS (
    SELECT
        jour, heure, region, produit, nombre_ventes, chiffre_affaires,
        CASE WHEN jour >= (SELECT premier + 7 FROM bornes) THEN chiffre_affaires ELSE NULL::numeric(18, 2) END
            AS chiffre_affaires_comparable,
        NULL::numeric(18, 2) AS chiffre_affaires_precedent,
        NULL::numeric(18, 2) AS chiffre_affaires_7_jours
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
    UNION ALL
    SELECT jour + 7, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), NULL::numeric(18, 2),
        chiffre_affaires, NULL::numeric(18, 2)
    FROM ventes_par_jour
    WHERE nombre_ventes > 0 AND jour + 7 < (SELECT dernier FROM bornes)
    UNION ALL
    -- Le dernier jour n'est pas fini : il se compare à la même partie du jour, une semaine avant.
    SELECT jour + 7, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), NULL::numeric(18, 2),
        chiffre_affaires, NULL::numeric(18, 2)
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
        AND jour = (SELECT dernier - 7 FROM bornes)
        AND heure <= (SELECT derniere_heure FROM bornes)
    UNION ALL
    SELECT
        jour + decalage, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), NULL::numeric(18, 2),
        NULL::numeric(18, 2), chiffre_affaires
    FROM ventes_par_jour, generate_series(0, 6) AS decalage
    WHERE nombre_ventes > 0
        AND jour + decalage BETWEEN (SELECT premier + 6 FROM bornes) AND (SELECT dernier FROM bornes)
)
SELECT
    jour, jour - (jour - date '1900-01-01') % 7 AS semaine,  -- le lundi : le 1er janvier 1900 en était un
    heure, region, produit,
    nombre_ventes, chiffre_affaires, chiffre_affaires_comparable, chiffre_affaires_precedent, chiffre_affaires_7_jours
FROM lignes;

-- Le total d'une période et de celle d'avant, qui vaut 0 si rien ne s'y est vendu, et NULL
-- avant la première vente.
CREATE VIEW ventes_par_periode AS
SELECT
    grain, debut, nombre_ventes, chiffre_affaires,
    panier_moyen(chiffre_affaires, nombre_ventes) AS panier_moyen,
    chiffre_affaires_precedent,
    evolution(chiffre_affaires, chiffre_affaires_precedent) AS evolution
FROM (
    VALUES
        ('heure', 'hour', interval '1 hour'), ('jour', 'day', interval '1 day'),
        ('semaine', 'week', interval '7 days'), ('mois', 'month', interval '1 month')
) AS grains (grain, unite, pas)
CROSS JOIN LATERAL (
    SELECT
        debut, nombre_ventes, chiffre_affaires,
        CASE
            WHEN lag(debut) OVER chronologie = debut - pas THEN lag(chiffre_affaires) OVER chronologie
            WHEN lag(debut) OVER chronologie IS NOT NULL THEN 0
        END AS chiffre_affaires_precedent
    FROM (
        SELECT
            date_trunc(unite, jour + make_interval(hours => heure)) AS debut,
            sum(nombre_ventes) AS nombre_ventes,
            sum(chiffre_affaires) AS chiffre_affaires
        FROM ventes_par_heure
        WHERE nombre_ventes > 0
        GROUP BY 1
    ) AS totaux
    WINDOW chronologie AS (ORDER BY debut)
) AS periodes;

CREATE VIEW ventes_par_region AS
SELECT
    region, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
    panier_moyen(sum(chiffre_affaires), sum(nombre_ventes)) AS panier_moyen,
    part(sum(chiffre_affaires), sum(sum(chiffre_affaires)) OVER ()) AS part,
    rank() OVER (ORDER BY sum(chiffre_affaires) DESC) AS rang
FROM ventes_par_jour
WHERE nombre_ventes > 0
GROUP BY region;

CREATE VIEW ventes_par_produit AS
SELECT
    produit, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
    panier_moyen(sum(chiffre_affaires), sum(nombre_ventes)) AS panier_moyen,
    part(sum(chiffre_affaires), sum(sum(chiffre_affaires)) OVER ()) AS part,
    rank() OVER (ORDER BY sum(chiffre_affaires) DESC) AS rang
FROM ventes_par_jour
WHERE nombre_ventes > 0
GROUP BY produit;

CREATE VIEW ventes_palmares AS
SELECT
    region, produit, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
    panier_moyen(sum(chiffre_affaires), sum(nombre_ventes)) AS panier_moyen,
    part(sum(chiffre_affaires), sum(sum(chiffre_affaires)) OVER (PARTITION BY region)) AS part_region,
    rank() OVER (PARTITION BY region ORDER BY sum(chiffre_affaires) DESC) AS rang_region
FROM ventes_par_jour
WHERE nombre_ventes > 0
GROUP BY region, produit;

COMMENT ON TABLE ventes_par_heure IS 'Sommes par heure, région et produit, tenues à jour à chaque écriture de ventes';
COMMENT ON TABLE ventes_par_jour IS 'Sommes par jour, région et produit, tenues à jour à chaque écriture de ventes';
COMMENT ON VIEW ventes_analyse IS 'Source des tableaux de bord : des sommes justes sous n''importe quel filtre';
COMMENT ON COLUMN ventes_analyse.jour IS 'Jour de la vente';
COMMENT ON COLUMN ventes_analyse.semaine IS 'Lundi de la semaine du jour';
COMMENT ON COLUMN ventes_analyse.heure IS 'Heure de la vente, de 0 à 23';
COMMENT ON COLUMN ventes_analyse.region IS 'Région ou pays de la vente';
COMMENT ON COLUMN ventes_analyse.produit IS 'Produit vendu';
COMMENT ON COLUMN ventes_analyse.nombre_ventes IS 'Nombre de ventes';
COMMENT ON COLUMN ventes_analyse.chiffre_affaires IS 'Somme des montants, en euros, exacte au centime';
COMMENT ON COLUMN ventes_analyse.chiffre_affaires_comparable IS
    'Chiffre d''affaires des jours qui ont un précédent : à partir du huitième, NULL avant';
COMMENT ON COLUMN ventes_analyse.chiffre_affaires_precedent IS
    'Chiffre d''affaires sept jours plus tôt, jusqu''à la même heure pour le dernier jour ; NULL avant le huitième jour';
COMMENT ON COLUMN ventes_analyse.chiffre_affaires_7_jours IS
    'Chiffre d''affaires des sept jours qui finissent ce jour-là ; par jour, divisé par 7, c''est la moyenne mobile';
COMMENT ON VIEW ventes_par_periode IS 'Totaux par heure, jour, semaine ou mois (colonne grain)';
COMMENT ON COLUMN ventes_par_periode.grain IS 'heure, jour, semaine ou mois';
COMMENT ON COLUMN ventes_par_periode.debut IS 'Début de la période ; une semaine commence le lundi';
COMMENT ON COLUMN ventes_par_periode.nombre_ventes IS 'Nombre de ventes';
COMMENT ON COLUMN ventes_par_periode.chiffre_affaires IS 'Somme des montants, en euros';
COMMENT ON COLUMN ventes_par_periode.panier_moyen IS 'Montant moyen d''une vente, en euros, au centime';
COMMENT ON COLUMN ventes_par_periode.chiffre_affaires_precedent IS 'Chiffre d''affaires de la période d''avant';
COMMENT ON COLUMN ventes_par_periode.evolution IS 'Variation depuis la période d''avant : 0.05 pour + 5 %';
COMMENT ON VIEW ventes_par_region IS 'Totaux, part et rang de chaque région';
COMMENT ON VIEW ventes_par_produit IS 'Totaux, part et rang de chaque produit';
COMMENT ON VIEW ventes_palmares IS 'Totaux de chaque produit dans chaque région, part et rang dans la région';

-- Le rôle tableau lit, rien d'autre ; schema.sql l'a créé, s'il en avait le droit.
DO $$
BEGIN
    GRANT SELECT ON
        ventes_par_heure, ventes_par_jour, ventes_analyse, ventes_par_periode, ventes_par_region,
        ventes_par_produit, ventes_palmares
    TO tableau;
EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'Droits du rôle tableau non posés : %', SQLERRM;
END
$$;
