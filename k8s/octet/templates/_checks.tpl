{{/* Refuses values that contradict each other, with the remedy. */}}
{{- define "octet.checks" -}}
{{- $fleet := include "octet.fleet" . }}
{{- with .Values }}
{{- if and .noAuth .adminKey }}
{{- fail "noAuth is true and adminKey is set: nobody would be asked for it. Keep one of both." }}
{{- end }}
{{- if and $fleet (not .store.url) (not .store.claim) }}
{{- fail "there is a database and no store: pods would find builds whose files only another one has. Set store.url (s3://bucket/prefix) or store.claim (a ReadWriteMany volume)." }}
{{- end }}
{{- if and (not $fleet) (or .store.url .store.claim) }}
{{- fail "there is a store and no database. Set database.url, database.external with existingSecret, or postgresql.enabled." }}
{{- end }}
{{- if and .store.url .store.claim }}
{{- fail "store.url and store.claim are both set; octet keeps its files in one place." }}
{{- end }}
{{- if and .database.external (not .existingSecret) }}
{{- fail "database.external is true and existingSecret is empty: it is where database-url is looked up. Set it, or database.url." }}
{{- end }}
{{- if gt (len (compact (list .database.url (.database.external | ternary "external" "") (.postgresql.enabled | ternary "bundled" "")))) 1 }}
{{- fail "several databases are named; keep one of database.url, database.external and postgresql.enabled." }}
{{- end }}
{{- if and .existingSecret (or .adminKey .database.url .planSecret .store.accessKeyId .store.secretAccessKey .postgresql.enabled) }}
{{- fail "existingSecret is set beside values that the chart would put into a Secret of its own (adminKey, database.url, planSecret, store.accessKeyId, store.secretAccessKey, postgresql.enabled). Keep one of both." }}
{{- end }}
{{- if and (not $fleet) (or (ne .server.autoscaling.kind "none") .worker.keda.enabled) }}
{{- fail "without a database there is one pod, which does not scale. Set database.url and store.url." }}
{{- end }}
{{- if and (eq .server.autoscaling.kind "keda") (not .prometheus.address) }}
{{- fail "server.autoscaling.kind is keda and prometheus.address is empty: KEDA asks it how long requests wait. Set it, such as http://prometheus.monitoring:9090." }}
{{- end }}
{{- if and (eq .worker.keda.kind "job") (not .worker.keda.enabled) }}
{{- fail "worker.keda.kind is job and worker.keda.enabled is false: nothing would start the jobs. Set worker.keda.enabled to true, or worker.keda.kind to deployment." }}
{{- end }}
{{- if and (eq .worker.keda.kind "job") (gt (int .worker.keda.minReplicas) 0) }}
{{- fail (printf "worker.keda.kind is job and worker.keda.minReplicas is %v: a job ends where no build is left for it, and would be started again and again. Set worker.keda.minReplicas to 0, or worker.keda.kind to deployment." .worker.keda.minReplicas) }}
{{- end }}
{{- if lt (int .server.gracePeriodSeconds) (add (int .server.drainSeconds) 45 | int) }}
{{- fail (printf "server.gracePeriodSeconds is %v and server.drainSeconds is %v: admitted requests would be cut off. Set it to %v or more." .server.gracePeriodSeconds .server.drainSeconds (add .server.drainSeconds 45)) }}
{{- end }}
{{- if and .ingress.enabled (not .ingress.hosts) }}
{{- fail "ingress.enabled is true and ingress.hosts is empty: every host name of the controller would lead to octet. Name yours." }}
{{- end }}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled is true and httpRoute.parentRefs is empty: no gateway would take the route. Name yours." }}
{{- end }}
{{- end }}
{{- end }}
