gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl apply --filename=- <<'END_OF_INPUT'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: poe
  namespace: default
  labels:
    app: adx
    adx-job: poe
spec:
  replicatedJobs:
  - name: shards
    replicas: 1
    template:
      metadata:
        labels:
          app: adx
          adx-job: poe
      spec:
        completionMode: Indexed
        completions: 2
        parallelism: 2
        podFailurePolicy:
          rules:
          - action: Ignore
            onPodConditions:
            - type: DisruptionTarget
              status: 'True'
          - action: FailIndex
            onExitCodes:
              operator: NotIn
              values:
              - 74
              - 75
        template:
          metadata:
            labels:
              app: adx
              adx-job: poe
          spec:
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 2x4
            serviceAccountName: runner
            restartPolicy: Never
            terminationGracePeriodSeconds: 60
            automountServiceAccountToken: false
            containers:
            - name: adx
              image: us-docker.pkg.dev/my-project/adx/run:1
              args:
              - launch.run
              - --config=configs/smollm2_poe.py
              - --workdir=gs://bucket/poe
              - --set=limit=64
              env:
              - name: JOB_COMPLETIONS
                value: '2'
              - name: HF_TOKEN
                valueFrom:
                  secretKeyRef:
                    name: hub
                    key: token
              resources:
                limits:
                  google.com/tpu: '8'
                requests:
                  google.com/tpu: '8'
        backoffLimitPerIndex: 10
        maxFailedIndexes: 2
  failurePolicy:
    maxRestarts: 0
END_OF_INPUT
gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl --namespace=default get jobsets --selector=app=adx
gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl --namespace=default logs --selector=jobset.sigs.k8s.io/jobset-name=poe --all-containers --prefix --tail=200
gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl --namespace=default patch jobset poe --type=merge '--patch={"spec": {"suspend": true}}'
gcloud container clusters get-credentials adx --project=my-project --location=us-west4
kubectl --namespace=default delete jobset poe --ignore-not-found --cascade=foreground
