// Compte des scripts dans MongoDB, créé une seule fois par mongosh à la naissance du
// serveur (docker-compose). La pile locale crée le même avec PyMongo (services/install.py).
db.getSiblingDB(process.env.MONGO_DATABASE).createUser({
  user: process.env.MONGO_USER,
  pwd: process.env.MONGO_PASSWORD,
  roles: process.env.MONGO_ROLES.split(','),
});
