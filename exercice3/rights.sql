-- Droits du rôle tableau : lire, et rien d'autre. Il ne crée pas non plus d'objet temporaire, là où
-- services/config/roles.sql l'a retiré à PUBLIC à la naissance de la base.
DO $$
DECLARE
    lisible text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tableau') THEN
        CREATE ROLE tableau NOLOGIN;
        RAISE NOTICE 'Rôle tableau créé sans mot de passe : ALTER ROLE tableau LOGIN PASSWORD ''...'';';
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO tableau', current_database());
    GRANT USAGE ON SCHEMA public TO tableau;
    FOR lisible IN
        SELECT nom
        FROM unnest(ARRAY['ventes', 'ventes_par_heure', 'ventes_par_jour', 'ventes_analyse', 'ventes_par_periode',
                          'ventes_par_region', 'ventes_par_produit', 'ventes_palmares']) AS nom
        WHERE to_regclass(nom) IS NOT NULL
    LOOP
        EXECUTE format('GRANT SELECT ON %I TO tableau', lisible);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'Droits du rôle tableau non posés : %', SQLERRM;
END
$$;
