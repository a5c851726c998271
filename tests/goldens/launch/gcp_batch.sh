gcloud batch jobs submit poe --config=- --project=my-project --location=us-central1 <<'END_OF_INPUT'
{
  "taskGroups": [
    {
      "taskSpec": {
        "runnables": [
          {
            "container": {
              "imageUri": "us-docker.pkg.dev/my-project/adx/run:1",
              "commands": [
                "launch.run",
                "--config=configs/smollm2_poe.py",
                "--workdir=gs://bucket/poe",
                "--set=limit=64"
              ]
            }
          }
        ],
        "environment": {
          "variables": {},
          "secretVariables": {
            "HF_TOKEN": "projects/my-project/secrets/hub/versions/3"
          }
        },
        "maxRetryCount": 10,
        "lifecyclePolicies": [
          {
            "action": "RETRY_TASK",
            "actionCondition": {
              "exitCodes": [
                74,
                75,
                50001,
                50003
              ]
            }
          }
        ]
      },
      "taskCount": 2,
      "parallelism": 2,
      "taskCountPerNode": 1
    }
  ],
  "allocationPolicy": {
    "location": {
      "allowedLocations": [
        "regions/us-central1"
      ]
    },
    "instances": [
      {
        "policy": {
          "machineType": "g2-standard-4",
          "provisioningModel": "STANDARD",
          "bootDisk": {
            "sizeGb": 100
          }
        },
        "installGpuDrivers": true
      }
    ],
    "labels": {
      "app": "adx",
      "adx-job": "poe"
    },
    "serviceAccount": {
      "email": "runner@my-project.iam.gserviceaccount.com"
    }
  },
  "labels": {
    "app": "adx",
    "adx-job": "poe"
  },
  "logsPolicy": {
    "destination": "CLOUD_LOGGING"
  }
}
END_OF_INPUT
gcloud batch jobs list --filter=labels.app=adx --project=my-project --location=us-central1
gcloud batch tasks list --job=poe --project=my-project --location=us-central1
gcloud logging read 'labels."adx-job"="poe"' '--format=value(timestamp,labels.task_id,textPayload)' --order=asc --freshness=7d --project=my-project
gcloud batch jobs cancel poe --quiet --project=my-project --location=us-central1
gcloud batch jobs delete poe --quiet --project=my-project --location=us-central1
