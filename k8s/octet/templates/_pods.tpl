{{/* What pods of octet have in common; takes (list $ "server" .Values.server). */}}
{{- define "octet.pod" -}}
{{- $ := index . 0 }}{{ $role := index . 1 }}{{ $own := index . 2 -}}
serviceAccountName: {{ include "octet.serviceAccount" $ }}
automountServiceAccountToken: false
# Kubernetes would else set OCTET_PORT to an address, for a Service of that name.
enableServiceLinks: false
securityContext: {{ include "octet.podSecurity" 10001 | nindent 2 }}
{{- with $.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if and $.Values.gpu.enabled $.Values.gpu.runtimeClassName }}
runtimeClassName: {{ $.Values.gpu.runtimeClassName }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := $own.tolerations }}
{{- if $.Values.gpu.enabled }}
{{- $tolerations = append $tolerations (dict "key" $.Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $.Values.topologySpread.topologyKey }}
    whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{ include "octet.selector" (list $ $role) | nindent 8 }}
{{- if include "octet.fleet" $ }}
# One pod migrates, under a lock of the database, and the others wait: a hook would deadlock with a bundled database.
initContainers:
  - name: migrate
    {{- include "octet.container" $ | nindent 4 }}
    args: [migrate]
    env: {{ include "octet.environment" (list $ "127.0.0.1") | nindent 6 }}
    resources:
      requests: {cpu: 100m, memory: 256Mi}
      limits: {cpu: "1", memory: 1Gi}
    volumeMounts: {{ include "octet.mounts" (list $ "migrate") | nindent 6 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  - name: data
    {{- if include "octet.fleet" $ }}
    emptyDir: {sizeLimit: {{ $.Values.scratch.size }}}
    {{- else }}
    persistentVolumeClaim: {claimName: {{ $.Values.persistence.existingClaim | default (include "octet.name" $) }}}
    {{- end }}
  {{- with $.Values.store.claim }}
  - name: store
    persistentVolumeClaim: {claimName: {{ . }}}
  {{- end }}
  {{- if and $.Values.engineCache.claim (eq $role "server") }}
  - name: engines
    persistentVolumeClaim: {claimName: {{ $.Values.engineCache.claim }}}
  {{- end }}
{{- end }}

{{- define "octet.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "octet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "octet.container" -}}
image: {{ include "octet.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{ include "octet.containerSecurity" . | nindent 2 }}
{{- end }}

{{/* Resources with GPUs; takes (list $ .Values.server.resources). */}}
{{- define "octet.resources" -}}
{{- $ := index . 0 }}{{ $own := deepCopy (index . 1) -}}
{{- if $.Values.gpu.enabled }}
{{- $own = merge $own (dict "limits" (dict $.Values.gpu.resource $.Values.gpu.count)) }}
{{- end }}
{{- toYaml $own }}
{{- end }}

{{- define "octet.mounts" -}}
{{- $ := index . 0 }}{{ $role := index . 1 -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
{{- if $.Values.store.claim }}
- {name: store, mountPath: /store}
{{- end }}
{{- if and $.Values.engineCache.claim (eq $role "server") }}
- {name: engines, mountPath: /data/engines}
{{- end }}
{{- end }}

{{/* Variables; takes (list $ "0.0.0.0"), the address to listen on. */}}
{{- define "octet.environment" -}}
{{- $ := index . 0 }}{{ $host := index . 1 }}{{ $secret := include "octet.secret" $ -}}
- {name: OCTET_HOME, value: /data}
- {name: OCTET_HOST, value: {{ $host }}}
- {name: OCTET_PORT, value: "8000"}
{{- if ne $host "127.0.0.1" }}
{{- if $.Values.noAuth }}
- {name: OCTET_NO_AUTH, value: "1"}
{{- else }}
- {name: OCTET_ADMIN_KEY, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: admin-key}}}
{{- end }}
{{- end }}
{{- if include "octet.fleet" $ }}
- {name: OCTET_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: database-url}}}
- {name: OCTET_STORE_URL, value: {{ $.Values.store.url | default "file:///store" | quote }}}
{{- end }}
{{- if $.Values.store.url }}
- {name: AWS_REGION, value: {{ $.Values.store.region | quote }}}
{{- with $.Values.store.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- if or $.Values.existingSecret $.Values.store.accessKeyId }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: store-access-key-id, optional: {{ not (empty $.Values.existingSecret) }}}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: store-secret-access-key, optional: {{ not (empty $.Values.existingSecret) }}}}}
{{- end }}
{{- end }}
{{- if or $.Values.existingSecret $.Values.planSecret }}
- {name: OCTET_PLAN_SECRET, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: plan-secret, optional: {{ not (empty $.Values.existingSecret) }}}}}
{{- end }}
{{- with $.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
