-- Du tampon à la table, dans la transaction ouverte par pg.py. PostgreSQL juge lui-même ce
-- qu'il peut stocker (pg_input_is_valid) : une ligne refusée va dans ventes_rejets.

WITH jugees AS (
    SELECT
        *,
        CASE
            WHEN btrim(id) = '' OR btrim(produit) = '' OR btrim(region) = ''
                THEN 'id, produit ou region vide'
            WHEN row_number() OVER (PARTITION BY id ORDER BY ligne) > 1
                THEN 'id déjà vu plus haut dans ce fichier'
            WHEN montant !~ '^[0-9]+([.][0-9]{1,2})?$' OR NOT pg_input_is_valid(montant, 'numeric(10,2)')
                THEN 'montant « ' || montant || ' » : un nombre à deux décimales, inférieur à 100 millions, est attendu'
            WHEN montant::numeric = 0
                THEN 'montant nul'
            WHEN date_vente !~ '^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$' OR NOT pg_input_is_valid(date_vente, 'timestamp')
                THEN 'date_vente « ' || date_vente || ' » : AAAA-MM-JJ HH:MM:SS est attendu'
        END AS raison
    FROM tampon
),
rejets AS (
    INSERT INTO ventes_rejets (fichier, sha256, ligne, raison, contenu)
    SELECT %(fichier)s, %(sha256)s, ligne, raison, concat_ws(',', id, produit, region, montant, date_vente)
    FROM jugees
    WHERE raison IS NOT NULL
    RETURNING 1
),
-- Triées par id : deux chargements simultanés prennent leurs verrous dans le même ordre.
ecrites AS (
    INSERT INTO ventes AS v (id, produit, region, montant, date_vente)
    SELECT id, produit, region, montant::numeric(10, 2), date_vente::timestamp
    FROM jugees
    WHERE raison IS NULL
    ORDER BY id
    ON CONFLICT (id) DO UPDATE
        SET produit = excluded.produit, region = excluded.region, montant = excluded.montant,
            date_vente = excluded.date_vente, charge_le = now()
        WHERE (v.produit, v.region, v.montant, v.date_vente)
            IS DISTINCT FROM (excluded.produit, excluded.region, excluded.montant, excluded.date_vente)
    RETURNING xmax = 0 AS nouvelle  -- xmax vaut 0 pour une ligne insérée
)
UPDATE ventes_chargements
SET nouvelles = (SELECT count(*) FROM ecrites WHERE nouvelle),
    modifiees = (SELECT count(*) FROM ecrites WHERE NOT nouvelle),
    rejetees = %(rejetees)s + (SELECT count(*) FROM rejets)
WHERE fichier = %(fichier)s AND sha256 = %(sha256)s
RETURNING nouvelles, modifiees, rejetees;
