{{- define "octet.name" -}}
{{- contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "octet.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "octet.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "octet.name" .) "default") }}
{{- end }}

{{- define "octet.secret" -}}
{{- .Values.existingSecret | default (include "octet.name" .) }}
{{- end }}

{{/* "true" where servers and workers share a database. */}}
{{- define "octet.fleet" -}}
{{- if or .Values.database.url .Values.database.external .Values.postgresql.enabled }}true{{ end }}
{{- end }}

{{/* "true" where each build is a job of its own. */}}
{{- define "octet.jobs" -}}
{{- if and .Values.worker.keda.enabled (eq .Values.worker.keda.kind "job") }}true{{ end }}
{{- end }}

{{/* Which pods are of the release; takes (list $ "server"). */}}
{{- define "octet.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "octet.labels" -}}
{{ include "octet.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}
