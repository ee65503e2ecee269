"""A small web application with the imports of a usual one: answers at /health."""
import flask
import pydantic  # noqa: F401
import requests  # noqa: F401
import sqlalchemy
import waitress

engine = sqlalchemy.create_engine("sqlite://")
app = flask.Flask(__name__)


@app.get("/health")
def health():
    with engine.connect() as connection:
        return {"one": connection.execute(sqlalchemy.text("select 1")).scalar()}


waitress.serve(app, host="0.0.0.0", port=8080)
