-- Rôles et base de PostgreSQL, créés une seule fois par le superutilisateur, à la
-- naissance du serveur (docker-compose : /docker-entrypoint-initdb.d ; pile locale :
-- psql). Noms et mots de passe viennent de l'environnement, donc de .env.
\set ON_ERROR_STOP on
\getenv owner PIPELINE_USER
\getenv owner_password PIPELINE_PASSWORD
\getenv database PIPELINE_DATABASE
\getenv tableau_password TABLEAU_PASSWORD

-- Une variable de votre terminal l'emporte sur .env : celle d'un autre projet ne convient pas toujours à celui-ci.
SELECT :'owner' IN (current_user, 'tableau') OR :'database' IN ('postgres', 'template0', 'template1')
    OR '' IN (:'owner', :'database', :'owner_password', :'tableau_password') AS refused \gset
\if :refused
    \warn PIPELINE_USER=:owner PIPELINE_DATABASE=:database
    DO $$ BEGIN RAISE EXCEPTION 'PIPELINE_USER, PIPELINE_DATABASE ou un mot de passe ne conviennent pas : « unset PIPELINE_USER PIPELINE_DATABASE PIPELINE_PASSWORD TABLEAU_PASSWORD » ou corrigez .env, puis recommencez.'; END $$;
\endif

CREATE ROLE :"owner" LOGIN PASSWORD :'owner_password';
CREATE DATABASE :"database" OWNER :"owner";
REVOKE TEMPORARY ON DATABASE :"database" FROM PUBLIC;  -- tableau ne doit rien créer, même de temporaire

-- Tableau se connecte avec ce rôle. exercice3/schema.sql lui donne ses droits de
-- lecture ; les transactions en lecture seule ne sont qu'une ceinture de plus.
CREATE ROLE tableau LOGIN PASSWORD :'tableau_password';
ALTER ROLE tableau SET default_transaction_read_only = on;
