{# Tests of models that have a row for every sample or pick of every run are limited to the newest finished run: to the
   value that the model newest_run has of the column that the model's `meta.newest` names. #}
{% macro get_where_subquery(relation) -%}
    {%- set nodes = graph.nodes.values() if execute else [] -%}
    {%- set found = nodes | selectattr("resource_type", "equalto", "model")
        | selectattr("name", "equalto", relation.identifier) | list -%}
    {%- set newest = found[0].config.meta.get("newest") if found -%}
    {%- if newest -%}
        (SELECT * FROM {{ relation }} WHERE {{ newest }} = (SELECT {{ newest }} FROM newest_run)) AS of_newest_run
    {%- else -%}
        {{ relation }}
    {%- endif -%}
{%- endmacro %}

{# No two rows have the same values in all of these columns, unless one is empty. #}
{% test unique_together(model, columns) %}
SELECT {{ columns | join(", ") }}
FROM {{ model }}
WHERE {{ columns | join(" IS NOT NULL AND ") }} IS NOT NULL
GROUP BY ALL
HAVING count(*) > 1
{% endtest %}
