-- Ce que Tableau et l'aperçu lisent (PostgreSQL 16 ou plus récent). schema.py applique ce fichier
-- après sums.sql, et de nouveau quand il a changé. Les noms des colonnes sont une interface :
-- on en ajoute à la fin, on n'en change pas.
--
-- ventes_analyse                      la source des tableaux de bord : tout y est filtrable
-- ventes_par_periode                  par heure, jour, semaine, mois, avec la période précédente
-- ventes_par_region, _par_produit     rang et part
-- ventes_palmares                     rang et part de chaque produit dans sa région

-- Chaque mesure n'a qu'une définition.
CREATE OR REPLACE FUNCTION panier_moyen(chiffre_affaires numeric, nombre_ventes numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round(chiffre_affaires / nullif(nombre_ventes, 0), 2);
CREATE OR REPLACE FUNCTION evolution(valeur numeric, precedente numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round((valeur - precedente) / nullif(precedente, 0), 4);
CREATE OR REPLACE FUNCTION part(valeur numeric, total numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE RETURN round(valeur / nullif(total, 0), 4);

-- L'heure du magasin, sans fuseau, comme date_vente : celle du serveur. Ailleurs, redéfinissez-la,
-- par exemple « now() AT TIME ZONE 'Europe/Paris' » : elle n'est posée que si elle manque.
DO $$
BEGIN
    IF to_regproc('heure_du_magasin') IS NULL THEN
        CREATE FUNCTION heure_du_magasin() RETURNS timestamp LANGUAGE sql STABLE RETURN localtimestamp;
    END IF;
END
$$;

-- La source des tableaux de bord. Toutes ses mesures s'additionnent : sous n'importe quel
-- filtre, une somme est juste. Pour cela une journée y compte plusieurs fois, chaque fois
-- dans une autre colonne : le jour même, sept jours plus tard (comparaison), et dans chacun
-- des sept jours qui suivent (moyenne mobile). Un calcul de table de Tableau, lui, sauterait
-- les jours sans vente et repartirait de zéro au bord du filtre. Le premier jour, commencé on
-- ne sait quand, n'est comparé à rien ; le dernier, pas fini, n'entre pas dans la moyenne. Le dernier
-- est celui de l'horloge du magasin : une vente datée de demain n'y change rien.
CREATE OR REPLACE VIEW ventes_analyse AS
WITH bornes AS (
    SELECT
        (SELECT min(jour) FROM ventes_par_jour WHERE nombre_ventes > 0) AS premier,
        jour AS dernier,
        heure AS derniere_heure
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
        AND (jour, heure) <= (heure_du_magasin()::date, extract(hour FROM heure_du_magasin()))
    ORDER BY jour DESC, heure DESC
    LIMIT 1
),
lignes AS (
    SELECT
        jour, heure, region, produit, nombre_ventes, chiffre_affaires,
        CASE WHEN jour > (SELECT premier + 7 FROM bornes) AND jour <= (SELECT dernier FROM bornes) THEN chiffre_affaires ELSE NULL::numeric(18, 2) END
            AS chiffre_affaires_comparable,
        NULL::numeric(18, 2) AS chiffre_affaires_precedent,
        NULL::numeric(18, 2) AS chiffre_affaires_7_jours
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
    UNION ALL
    SELECT jour + 7, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), 0::numeric(18, 2),
        chiffre_affaires, NULL::numeric(18, 2)
    FROM ventes_par_jour
    WHERE nombre_ventes > 0
        AND jour > (SELECT premier FROM bornes)
        AND jour + 7 < (SELECT dernier FROM bornes)
    UNION ALL
    -- Le dernier jour n'est pas fini : il se compare à la même partie du jour, une semaine avant.
    SELECT jour + 7, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), 0::numeric(18, 2),
        chiffre_affaires, NULL::numeric(18, 2)
    FROM ventes_par_heure
    WHERE nombre_ventes > 0
        AND jour = (SELECT dernier - 7 FROM bornes)
        AND jour > (SELECT premier FROM bornes)
        AND heure <= (SELECT derniere_heure FROM bornes)
    UNION ALL
    SELECT
        jour + decalage, 0::smallint, region, produit, 0::bigint, 0::numeric(18, 2), NULL::numeric(18, 2),
        NULL::numeric(18, 2), chiffre_affaires
    FROM ventes_par_jour, generate_series(0, 6) AS decalage
    WHERE nombre_ventes > 0
        AND jour > (SELECT premier FROM bornes)
        AND jour + decalage BETWEEN (SELECT premier + 7 FROM bornes) AND (SELECT dernier - 1 FROM bornes)
)
SELECT
    jour, jour - (jour - date '0001-01-01') % 7 AS semaine,  -- le lundi : le 1er janvier de l'an 1 en est un
    heure, region, produit,
    nombre_ventes, chiffre_affaires, chiffre_affaires_comparable, chiffre_affaires_precedent, chiffre_affaires_7_jours
FROM lignes;

-- Le total d'une période et de celle d'avant : 0 si rien ne s'y est vendu, NULL pour la
-- toute première.
CREATE OR REPLACE VIEW ventes_par_periode AS
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

CREATE OR REPLACE VIEW ventes_par_region AS
SELECT
    region, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
    panier_moyen(sum(chiffre_affaires), sum(nombre_ventes)) AS panier_moyen,
    part(sum(chiffre_affaires), sum(sum(chiffre_affaires)) OVER ()) AS part,
    rank() OVER (ORDER BY sum(chiffre_affaires) DESC) AS rang
FROM ventes_par_jour
WHERE nombre_ventes > 0
GROUP BY region;

CREATE OR REPLACE VIEW ventes_par_produit AS
SELECT
    produit, sum(nombre_ventes) AS nombre_ventes, sum(chiffre_affaires) AS chiffre_affaires,
    panier_moyen(sum(chiffre_affaires), sum(nombre_ventes)) AS panier_moyen,
    part(sum(chiffre_affaires), sum(sum(chiffre_affaires)) OVER ()) AS part,
    rank() OVER (ORDER BY sum(chiffre_affaires) DESC) AS rang
FROM ventes_par_jour
WHERE nombre_ventes > 0
GROUP BY produit;

CREATE OR REPLACE VIEW ventes_palmares AS
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
COMMENT ON VIEW ventes_par_periode IS 'Totaux par heure, jour, semaine ou mois (colonne grain)';
COMMENT ON VIEW ventes_par_region IS 'Totaux, part et rang de chaque région';
COMMENT ON VIEW ventes_par_produit IS 'Totaux, part et rang de chaque produit';
COMMENT ON VIEW ventes_palmares IS 'Totaux de chaque produit dans chaque région, part et rang dans la région';

-- Un nom de colonne veut dire la même chose partout.
DO $$
DECLARE
    trouvee record;
BEGIN
    FOR trouvee IN
        SELECT attrelid::regclass AS relation, attname AS colonne, texte
        FROM (
            VALUES
                ('jour', 'Jour de la vente'),
                ('semaine', 'Lundi de la semaine du jour'),
                ('heure', 'Heure de la vente, de 0 à 23'),
                ('region', 'Région ou pays de la vente'),
                ('produit', 'Produit vendu'),
                ('grain', 'heure, jour, semaine ou mois'),
                ('debut', 'Début de la période ; une semaine commence le lundi'),
                ('nombre_ventes', 'Nombre de ventes'),
                ('chiffre_affaires', 'Somme des montants, en euros, exacte au centime'),
                ('panier_moyen', 'Montant moyen d''une vente, en euros, au centime'),
                ('part', 'Part du chiffre d''affaires : 0.05 pour 5 %'),
                ('rang', '1 pour le plus grand chiffre d''affaires'),
                ('part_region', 'Part du chiffre d''affaires de la région : 0.05 pour 5 %'),
                ('rang_region', '1 pour le plus grand chiffre d''affaires de la région'),
                ('chiffre_affaires_comparable', 'Chiffre d''affaires des jours qui ont un précédent : dès le neuvième'),
                ('chiffre_affaires_precedent', 'Chiffre d''affaires de la période d''avant, ou de la semaine d''avant '
                    'dans ventes_analyse, où le dernier jour se compare à la même partie du jour'),
                ('chiffre_affaires_7_jours', 'Chiffre d''affaires des sept jours qui finissent ce jour-là ; '
                    'divisé par 7, par jour, c''est la moyenne mobile. Du huitième jour à l''avant-dernier'),
                ('evolution', 'Variation depuis la période d''avant : 0.05 pour + 5 %. La période en cours '
                    'n''est pas finie, celle d''avant l''est')
        ) AS noms (nom, texte)
        JOIN pg_attribute ON attname = nom
        WHERE attrelid IN (
            'ventes_par_heure'::regclass, 'ventes_par_jour'::regclass, 'ventes_analyse'::regclass,
            'ventes_par_periode'::regclass, 'ventes_par_region'::regclass, 'ventes_par_produit'::regclass,
            'ventes_palmares'::regclass
        )
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', trouvee.relation, trouvee.colonne, trouvee.texte);
    END LOOP;
END
$$;
