-- Sommes par heure et par jour, que PostgreSQL tient à jour à chaque écriture de ventes. Dix millions
-- de ventes tiennent en quelques centaines de milliers de sommes : c'est elles que les vues lisent.
-- Une somme retombée à zéro vente reste, et les vues l'ignorent ; une vente annulée n'y est pas.

-- La table ventes a été effacée puis refaite : les sommes de l'ancienne s'en vont.
DO $$
BEGIN
    IF to_regproc('ventes_compter') IS NOT NULL
        AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'ventes'::regclass AND tgname = 'ventes_videes')
    THEN
        DROP TABLE IF EXISTS ventes_par_heure, ventes_par_jour CASCADE;
        DROP FUNCTION ventes_compter, ventes_oublier CASCADE;
    END IF;
END
$$;

-- Ajoute aux sommes les lignes écrites et en retire les lignes remplacées ou effacées, dans
-- la transaction même de l'écriture : elles ne peuvent pas s'écarter de la table ventes. Une
-- écriture n'attend que celles des mêmes jours (à 64 près : leurs verrous tiennent en mémoire), et
-- toutes les prennent dans le même ordre. Une écriture qui ajoute et modifie les prend en deux fois :
-- si deux s'attendent alors l'une l'autre, PostgreSQL en annule une, que pg.py recommence.
-- SECURITY DEFINER : qui peut écrire ventes n'a besoin d'aucun droit sur les sommes.
CREATE OR REPLACE FUNCTION ventes_compter() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    ajouts   text := 'SELECT 1 AS signe, * FROM nouvelles WHERE NOT annulee';
    retraits text := 'SELECT -1 AS signe, * FROM anciennes WHERE NOT annulee';
    lignes   text := CASE TG_OP
        WHEN 'INSERT' THEN ajouts
        WHEN 'DELETE' THEN retraits
        ELSE ajouts || ' UNION ALL ' || retraits
    END;
BEGIN
    EXECUTE format(
        'SELECT count(pg_advisory_xact_lock(%s, verrou))
         FROM (
             SELECT DISTINCT (date_vente::date - date ''0001-01-01'') %% 64 AS verrou
             FROM (%s) AS lignes
             ORDER BY 1
         ) AS verrous', TG_RELID::integer, lignes);
    EXECUTE format(
        'INSERT INTO ventes_par_heure AS h
         SELECT
             date_vente::date, extract(hour FROM date_vente)::smallint, region, produit,
             sum(signe), sum(signe * montant)
         FROM (%s) AS lignes
         GROUP BY 1, 2, 3, 4
         ON CONFLICT (jour, heure, region, produit) DO UPDATE
             SET nombre_ventes = h.nombre_ventes + excluded.nombre_ventes,
                 chiffre_affaires = h.chiffre_affaires + excluded.chiffre_affaires', lignes);
    EXECUTE format(
        'INSERT INTO ventes_par_jour AS j
         SELECT date_vente::date, region, produit, sum(signe), sum(signe * montant)
         FROM (%s) AS lignes
         GROUP BY 1, 2, 3
         ON CONFLICT (jour, region, produit) DO UPDATE
             SET nombre_ventes = j.nombre_ventes + excluded.nombre_ventes,
                 chiffre_affaires = j.chiffre_affaires + excluded.chiffre_affaires', lignes);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION ventes_oublier() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    TRUNCATE ventes_par_heure, ventes_par_jour;
    RETURN NULL;
END
$$;

-- Le schéma où elles écrivent, fixé : une table temporaire du même nom ne les trompe pas.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION ventes_compter() SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION ventes_oublier() SET search_path = %I, pg_temp', current_schema());
END
$$;

-- Les tables et leurs déclencheurs, une fois, avec les ventes déjà là. CREATE TRIGGER verrouille
-- ventes : aucune ne passe entre les deux.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'ventes'::regclass AND tgname = 'ventes_videes') THEN
        RETURN;
    END IF;
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
    INSERT INTO ventes_par_heure
    SELECT date_vente::date, extract(hour FROM date_vente), region, produit, count(*), sum(montant)
    FROM ventes
    WHERE NOT annulee
    GROUP BY 1, 2, 3, 4;
    INSERT INTO ventes_par_jour
    SELECT jour, region, produit, sum(nombre_ventes), sum(chiffre_affaires)
    FROM ventes_par_heure
    GROUP BY jour, region, produit;
END
$$;
