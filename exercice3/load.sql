-- Du tampon à la table, dans la transaction ouverte par pg.py, pour les lignes %(de)s à %(a)s. PostgreSQL
-- juge lui-même ce qu'il peut stocker (pg_input_is_valid) : une ligne refusée va dans ventes_rejets.

WITH jugees AS (
    SELECT
        *,
        CASE
            WHEN rejet <> ''
                THEN rejet
            WHEN btrim(id) = '' OR btrim(produit) = '' OR btrim(region) = ''
                THEN 'id, produit ou region vide'
            WHEN greatest(octet_length(id), octet_length(produit), octet_length(region)) > 1000
                THEN 'id, produit ou region de plus de 1000 octets'
            WHEN version <> '1'
                    AND (version !~ '^[0-9]+$' OR NOT pg_input_is_valid(version, 'integer') OR version ~ '^0+$')
                THEN 'version « ' || left(version, 50) || ' » : un entier positif est attendu'
            WHEN annulee NOT IN ('true', 'false')
                THEN 'annulee « ' || left(annulee, 50) || ' » : true ou false est attendu'
            WHEN row_number() OVER (PARTITION BY id, version ORDER BY ligne) > 1
                THEN 'id déjà vu plus haut dans ce fichier'
            WHEN montant !~ '^[0-9]+([.][0-9]{1,2})?$' OR NOT pg_input_is_valid(montant, 'numeric(10,2)')
                THEN 'montant « ' || left(montant, 50) || ' » : un nombre à deux décimales, inférieur à 100 millions, '
                    || 'est attendu'
            WHEN montant::numeric = 0
                THEN 'montant nul'
            -- Relue, elle doit s'écrire de même (« 24:00:00 » est le lendemain) ; six fois plus vite qu'un motif.
            WHEN CASE
                    WHEN pg_input_is_valid(date_vente, 'timestamp')
                        THEN length(date_vente) <> 19 OR date_vente::timestamp::text <> date_vente
                    ELSE true
                END
                THEN 'date_vente « ' || left(date_vente, 50) || ' » : AAAA-MM-JJ HH:MM:SS est attendu'
        END AS raison
    FROM tampon
),
rejets AS (
    INSERT INTO ventes_rejets (fichier, sha256, ligne, raison, contenu)
    SELECT
        %(fichier)s, %(sha256)s, ligne, raison,
        CASE WHEN rejet <> '' THEN contenu ELSE concat_ws(',', id, produit, region, montant, date_vente) END
    FROM jugees
    WHERE raison IS NOT NULL AND ligne BETWEEN %(de)s AND %(a)s
    RETURNING 1
),
-- La plus grande version de chaque vente, et d'aucune qui soit déjà plus récente ; triées par id : deux
-- chargements simultanés prennent leurs verrous dans le même ordre.
ecrites AS (
    INSERT INTO ventes AS v (id, produit, region, montant, date_vente, version, annulee)
    SELECT DISTINCT ON (id)
        id, produit, region, montant::numeric(10, 2), date_vente::timestamp, version::integer, annulee::boolean
    FROM jugees
    WHERE raison IS NULL AND ligne BETWEEN %(de)s AND %(a)s
    ORDER BY id, version::integer DESC
    ON CONFLICT (id) DO UPDATE
        SET produit = excluded.produit, region = excluded.region, montant = excluded.montant,
            date_vente = excluded.date_vente, version = excluded.version, annulee = excluded.annulee,
            charge_le = clock_timestamp()
        WHERE excluded.version > v.version
            OR excluded.version = v.version
            AND (v.produit, v.region, v.montant, v.date_vente, v.annulee) IS DISTINCT FROM
                (excluded.produit, excluded.region, excluded.montant, excluded.date_vente, excluded.annulee)
    RETURNING charge_le = now() AS nouvelle  -- insérée : now() ; récrite : plus tard. Une table répartie n'a pas xmax
)
UPDATE ventes_chargements
SET nouvelles = nouvelles + (SELECT count(*) FROM ecrites WHERE nouvelle),
    modifiees = modifiees + (SELECT count(*) FROM ecrites WHERE NOT nouvelle),
    rejetees = rejetees + (SELECT count(*) FROM rejets)
WHERE fichier = %(fichier)s AND sha256 = %(sha256)s
RETURNING nouvelles, modifiees, rejetees;
